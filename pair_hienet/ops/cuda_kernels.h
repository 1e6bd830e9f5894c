// SPDX-License-Identifier: GPL-2.0-or-later

#ifndef HIENET_CUDA_KERNELS_H
#define HIENET_CUDA_KERNELS_H

namespace hienet {

/// Whether the operators were compiled for GPUs, too.
bool has_cuda_kernels();

}    // namespace hienet

#endif
