// SPDX-License-Identifier: GPL-2.0-or-later
// How tensors are made and computed with where nothing is differentiated. Knows torch.

#ifndef HIENET_DEVICE_GUARD_H
#define HIENET_DEVICE_GUARD_H

#include <c10/core/DeviceGuard.h>
#include <c10/core/DispatchKeySet.h>
#include <c10/core/GradMode.h>
#include <c10/core/InferenceMode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

namespace hienet {

/// While it lives, in this thread, and whatever mode a caller in Python is in: new tensors may be differentiated with
/// respect to later, and are computed in their own dtype.
struct OrdinaryMode {
  c10::InferenceMode no_inference_mode{false};
  c10::impl::ExcludeDispatchKeyGuard no_autocast{c10::autocast_dispatch_keyset};
};

/// An ordinary mode in which the device is the current one and no derivatives are recorded.
struct DeviceGuard {
  explicit DeviceGuard(c10::Device where) : device(where) {}
  c10::DeviceGuard device;
  OrdinaryMode ordinary;
  c10::AutoGradMode no_grad{false};
};

}    // namespace hienet

#endif
