// SPDX-License-Identifier: GPL-2.0-or-later

#include "convolution_paths.h"

namespace hienet::HIENET_VARIANT {

template <typename T>
static constexpr Kernel<T> KERNEL = {scratch_size<Convolution<T>>, forward<Convolution<T>>,
                                     backward<Convolution<T>>};

extern const Kernel<float> CONVOLUTION_FLOAT = KERNEL<float>;
extern const Kernel<double> CONVOLUTION_DOUBLE = KERNEL<double>;

}    // namespace hienet::HIENET_VARIANT
