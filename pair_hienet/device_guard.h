// SPDX-License-Identifier: GPL-2.0-or-later
// How tensors are made and computed with where nothing is differentiated. Knows torch.

#ifndef HIENET_DEVICE_GUARD_H
#define HIENET_DEVICE_GUARD_H

#include <c10/core/DeviceGuard.h>
#include <c10/core/GradMode.h>
#include <c10/core/InferenceMode.h>

namespace hienet {

/// While it lives, in this thread: the device is the current one, no derivatives are recorded, and whatever mode a
/// caller in Python is in, new tensors may be differentiated with respect to later.
struct DeviceGuard {
  explicit DeviceGuard(c10::Device where) : device(where) {}
  c10::DeviceGuard device;
  c10::InferenceMode no_inference_mode{false};
  c10::AutoGradMode no_grad{false};
};

}    // namespace hienet

#endif
