// SPDX-License-Identifier: GPL-2.0-or-later

#ifndef HIENET_VIRIAL_COMPONENTS_H
#define HIENET_VIRIAL_COMPONENTS_H

namespace hienet {

/// The nine components of a virial, in the order of centroid stresses: xx, yy, zz, xy, xz, yz, yx, zx, zy.
inline constexpr int VIRIAL_ROW[9] = {0, 1, 2, 0, 0, 1, 1, 2, 2};
inline constexpr int VIRIAL_COLUMN[9] = {0, 1, 2, 1, 2, 2, 0, 0, 1};

}    // namespace hienet

#endif
