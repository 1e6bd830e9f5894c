// SPDX-License-Identifier: GPL-2.0-or-later
// What the operators of this folder share. They see tensors of any device: nothing here needs CUDA's own headers.

#ifndef HIENET_CUDA_DEVICE_CALL_H
#define HIENET_CUDA_DEVICE_CALL_H

#include "kernel_language.h"

#include <ATen/ATen.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <cstring>
#include <vector>

/// The device for which the operators register themselves.
#ifdef HIENET_EMULATED_CUDA
#define HIENET_DEVICE_KEY CPU
#else
#define HIENET_DEVICE_KEY CUDA
#endif

namespace hienet::cuda {

/// torch's current stream of a device; it is the one on which torch frees and reuses memory.
inline Stream current_stream(const at::Device &device)
{
#ifdef HIENET_EMULATED_CUDA
  return nullptr;
#else
  const c10::impl::VirtualGuardImpl guard(device.type());
  return guard.getStreamNativeHandle(guard.getStream(device));
#endif
}

/// Host values on a device.
template <typename T>
at::Tensor on_device(const std::vector<T> &values, at::ScalarType dtype, const at::Device &device)
{
  at::Tensor host = at::empty({static_cast<int64_t>(values.size())}, at::TensorOptions(dtype));
  TORCH_INTERNAL_ASSERT(host.element_size() == sizeof(T));
  if (!values.empty()) std::memcpy(host.data_ptr(), values.data(), values.size() * sizeof(T));
  return host.to(device);
}

/// Structures of 32-bit numbers as a tensor.
template <typename T>
at::Tensor structures_on_device(const std::vector<T> &values, const at::Device &device)
{
  static_assert(sizeof(T) % sizeof(int32_t) == 0);
  std::vector<int32_t> words(values.size() * sizeof(T) / sizeof(int32_t));
  if (!values.empty()) std::memcpy(words.data(), values.data(), values.size() * sizeof(T));
  return on_device(words, at::kInt, device);
}

}    // namespace hienet::cuda

#endif
