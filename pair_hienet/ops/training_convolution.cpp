// SPDX-License-Identifier: GPL-2.0-or-later
// The tensor-product convolution of a training step (hienet/ops/training.py):
//
//   torch.ops.hienet.training_convolution    messages, and its backward to features and edges: for energies and forces
//   torch.ops.hienet.dual_convolution        messages and their tangents, and its backward to features and splines
//
// They are not known to autograd; Python puts them together. Edges do not reach beyond the rank: there are no ghosts.

#include "training_convolution_kernel.h"

#include "differentiable.h"
#include "edge_list.h"
#include "interaction_plan.h"
#include "own_rows.h"
#include "pooled_memory.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <cstdint>
#include <tuple>
#include <vector>

namespace hienet {

using at::Tensor;

/// Edges that pass through all paths together: couplings and what is read of the features fit the second cache.
static constexpr int64_t PIECE_EDGES = 448;

template <typename T> static const TrainingKernel<T> &training_kernel();
template <> const TrainingKernel<float> &training_kernel<float>()
{ return HIENET_CHOSEN(TRAINING_CONVOLUTION_FLOAT); }
template <> const TrainingKernel<double> &training_kernel<double>()
{ return HIENET_CHOSEN(TRAINING_CONVOLUTION_DOUBLE); }

template <typename T> static const DualKernel<T> &dual_kernel();
template <> const DualKernel<float> &dual_kernel<float>()
{ return HIENET_CHOSEN(DUAL_CONVOLUTION_FLOAT); }
template <> const DualKernel<double> &dual_kernel<double>()
{ return HIENET_CHOSEN(DUAL_CONVOLUTION_DOUBLE); }

// ----------------------------------------------------------------------
// inputs
// ----------------------------------------------------------------------

/// The tensors of one call. Of dual features, `[n, 2, width]`, a row is followed by its tangents.
struct TrainingInputs {
  EdgeList list;
  Tensor features, edges, edge_tangents, first_row, basis, table, coefficients;
  InteractionPlan plan;
  int64_t width;    // of the features

  template <typename T> TrainingConvolution<T> view() const
  {
    return {{plan.paths.data(), static_cast<int64_t>(plan.paths.size()), plan.terms.data(),
             coefficients.data_ptr<T>(), edges.size(1) - 1, table.data_ptr<T>(),
             list.row_start.data(), list.neighbor, features.data_ptr<T>(), edges.data_ptr<T>(),
             features.stride(0), edges.stride(0)},
            table.size(1),
            first_row.data_ptr<int64_t>(),
            basis.data_ptr<T>()};
  }

  template <typename T> DualConvolution<T> dual_view() const
  {
    return {view<T>(), features.data_ptr<T>() + width, edge_tangents.data_ptr<T>(),
            edge_tangents.stride(0)};
  }
};

static TrainingInputs checked(const Tensor &features, const Tensor &edges,
                              const Tensor *edge_tangents, const Tensor &first_row,
                              const Tensor &basis, const Tensor &table, const Tensor &center,
                              const Tensor &neighbor, int64_t n_local, const Tensor &paths,
                              const Tensor &terms, const Tensor &coefficients)
{
  const auto dtype = features.scalar_type();
  const int64_t n_edges = center.size(0);
  TORCH_CHECK_VALUE(dtype == at::kFloat || dtype == at::kDouble,
                    "the convolution takes float32 or float64, got ", dtype);
  TORCH_CHECK_VALUE(features.dim() == (edge_tangents ? 3 : 2) &&
                        (!edge_tangents || features.size(1) == 2),
                    "`features` must be [n, width], or [n, 2, width] with tangents");
  for (const Tensor *tensor : {&edges, &basis, &table, edge_tangents ? edge_tangents : &edges})
    TORCH_CHECK_VALUE(tensor->scalar_type() == dtype, "`features` is ", dtype,
                      ", but another input ", tensor->scalar_type());
  TORCH_CHECK_VALUE(edges.dim() == 2 && edges.size(0) == n_edges && edges.size(1) >= 2,
                    "`edges` must have a distance and harmonics for each of ", n_edges, " edges");
  TORCH_CHECK_VALUE(!edge_tangents || edge_tangents->sizes() == edges.sizes(),
                    "`edge_tangents` must have the shape of `edges`");
  TORCH_CHECK_VALUE(basis.dim() == 3 && basis.size(0) == n_edges && basis.size(1) == 2 &&
                        basis.size(2) == BASIS_ROWS,
                    "`basis` must be [", n_edges, ", 2, ", BASIS_ROWS, "]");
  TORCH_CHECK_VALUE(table.dim() == 3 && table.size(2) == LANES, "`table` must be [blocks, rows, ",
                    LANES, "]");
  TORCH_CHECK_VALUE(first_row.scalar_type() == at::kLong && first_row.dim() == 1 &&
                        first_row.size(0) == n_edges,
                    "`first_row` must be [", n_edges, "] of int64");
  TORCH_CHECK_VALUE(paths.dim() == 2 && paths.size(1) == PATH_COLUMNS && terms.dim() == 2 &&
                        terms.size(1) == 2 && coefficients.dim() == 1 &&
                        coefficients.size(0) == terms.size(0),
                    "the plan of the convolution has a wrong shape");
  const Tensor rows_of_features = features.contiguous();
  TrainingInputs in{
      EdgeList(center, neighbor, n_local, features.size(0)),
      rows_of_features,
      rows(edges),
      edge_tangents ? rows(*edge_tangents) : Tensor(),
      first_row.contiguous(),
      basis.contiguous(),
      table.contiguous(),
      coefficients.to(dtype).contiguous(),
      InteractionPlan(paths, terms,
                      features.select(edge_tangents ? 1 : 0, 0).reshape({-1, features.size(-1)}),
                      edges, table),
      features.size(-1)};
  const int64_t *const row = in.first_row.data_ptr<int64_t>();
  for (int64_t e = 0; e < n_edges; e++)
    TORCH_CHECK_VALUE(row[e] >= 0 && row[e] + BASIS_ROWS <= table.size(1), "the rows of edge ", e,
                      " lie outside the table's ", table.size(1));
  return in;
}

/// What each thread works in.
template <typename T> static Tensor scratch_for(int64_t parts, int64_t size)
{
  // Whole vectors, so that every part is aligned.
  return pooled_empty({parts, (size + LANES - 1) / LANES * LANES},
                      c10::CppTypeToScalarType<T>::value);
}

// ----------------------------------------------------------------------
// values
// ----------------------------------------------------------------------

template <typename T> static void run_forward(const TrainingInputs &in, const Tensor &messages)
{
  const auto c = in.view<T>();
  const auto &kernel = training_kernel<T>();
  const auto bounds = in.list.parts();
  const Tensor scratch =
      scratch_for<T>(bounds.size() - 1, kernel.scratch_size(c, in.list.largest_piece(PIECE_EDGES)));
  for_each_part(bounds, [&](int64_t part, int64_t first, int64_t last) {
    in.list.for_each_piece(PIECE_EDGES, first, last, [&](int64_t from, int64_t to) {
      kernel.forward(c, messages.data_ptr<T>() + from * messages.stride(0), messages.stride(0),
                     from, to, scratch.data_ptr<T>() + part * scratch.stride(0));
    });
  });
}

template <typename T>
static void run_backward(const TrainingInputs &in, const Tensor &gradient,
                         const Tensor &of_features, const Tensor &of_edges)
{
  const auto c = in.view<T>();
  const auto &kernel = training_kernel<T>();
  const auto bounds = in.list.parts();
  const Tensor scratch =
      scratch_for<T>(bounds.size() - 1, kernel.scratch_size(c, in.list.largest_piece(PIECE_EDGES)));
  const OwnRows own(in.list, bounds, in.features.size(0), in.width, in.features.scalar_type());
  for_each_part(bounds, [&](int64_t part, int64_t first, int64_t last) {
    Gradients<T> g = {of_features.data_ptr<T>(), of_edges.data_ptr<T>(), of_features.stride(0),
                      of_edges.stride(0), nullptr};
    if (part > 0) {
      g.features = own.rows<T>(part);
      g.feature_stride = in.width;
      g.slot = own.slot[part].data();
    }
    in.list.for_each_piece(PIECE_EDGES, first, last, [&](int64_t from, int64_t to) {
      kernel.backward(c, gradient.data_ptr<T>() + from * gradient.stride(0), gradient.stride(0), g,
                      from, to, scratch.data_ptr<T>() + part * scratch.stride(0));
    });
  });
  own.add_to<T>(of_features);
}

static Tensor forward_cpu(const Tensor &features, const Tensor &edges, const Tensor &first_row,
                          const Tensor &basis, const Tensor &table, const Tensor &center,
                          const Tensor &neighbor, int64_t n_local, const Tensor &paths,
                          const Tensor &terms, const Tensor &coefficients)
{
  const TrainingInputs in = checked(features, edges, nullptr, first_row, basis, table, center,
                                    neighbor, n_local, paths, terms, coefficients);
  const Tensor messages = pooled_empty({n_local, in.plan.message_width}, features.scalar_type());
  AT_DISPATCH_FLOATING_TYPES(features.scalar_type(), "training_convolution", [&] {
    run_forward<scalar_t>(in, messages);
  });
  return messages;
}

static void check_gradient(const Tensor &gradient, const TrainingInputs &in, at::IntArrayRef shape)
{
  TORCH_CHECK_VALUE(gradient.sizes() == shape &&
                        gradient.scalar_type() == in.features.scalar_type(),
                    "the gradient of the messages has a wrong shape or dtype");
}

static std::tuple<Tensor, Tensor> backward_cpu(const Tensor &gradient, const Tensor &features,
                                               const Tensor &edges, const Tensor &first_row,
                                               const Tensor &basis, const Tensor &table,
                                               const Tensor &center, const Tensor &neighbor,
                                               int64_t n_local, const Tensor &paths,
                                               const Tensor &terms, const Tensor &coefficients)
{
  const TrainingInputs in = checked(features, edges, nullptr, first_row, basis, table, center,
                                    neighbor, n_local, paths, terms, coefficients);
  check_gradient(gradient, in, {n_local, in.plan.message_width});
  const Tensor of_features = pooled_zeros(features.sizes(), features.scalar_type());
  const Tensor of_edges = pooled_zeros(edges.sizes(), features.scalar_type());
  AT_DISPATCH_FLOATING_TYPES(features.scalar_type(), "training_convolution", [&] {
    run_backward<scalar_t>(in, rows(gradient), of_features, of_edges);
  });
  return {of_features, of_edges};
}

// ----------------------------------------------------------------------
// values with tangents
// ----------------------------------------------------------------------

template <typename T> static void run_dual_forward(const TrainingInputs &in, const Tensor &messages)
{
  const auto c = in.dual_view<T>();
  const auto &kernel = dual_kernel<T>();
  const auto bounds = in.list.parts();
  const Tensor scratch =
      scratch_for<T>(bounds.size() - 1, kernel.scratch_size(c, in.list.largest_piece(PIECE_EDGES)));
  for_each_part(bounds, [&](int64_t part, int64_t first, int64_t last) {
    in.list.for_each_piece(PIECE_EDGES, first, last, [&](int64_t from, int64_t to) {
      T *const row = messages.data_ptr<T>() + from * messages.stride(0);
      kernel.forward(c, {row, row + messages.stride(1), messages.stride(0)}, from, to,
                     scratch.data_ptr<T>() + part * scratch.stride(0));
    });
  });
}

template <typename T>
static void run_dual_backward(const TrainingInputs &in, const Tensor &gradient,
                              const Tensor &of_features, const Tensor &of_table)
{
  const auto c = in.dual_view<T>();
  const auto &kernel = dual_kernel<T>();
  const auto bounds = in.list.parts();
  const int64_t parts = bounds.size() - 1;
  const Tensor scratch =
      scratch_for<T>(parts, kernel.scratch_size(c, in.list.largest_piece(PIECE_EDGES)));
  const OwnRows own(in.list, bounds, in.features.size(0), 2 * in.width, in.features.scalar_type());
  const Tensor own_tables = pooled_zeros({parts - 1, in.table.numel()}, in.table.scalar_type());
  for_each_part(bounds, [&](int64_t part, int64_t first, int64_t last) {
    DualGradients<T> to = {of_features.data_ptr<T>(), of_features.data_ptr<T>() + in.width,
                           of_features.stride(0), nullptr, of_table.data_ptr<T>()};
    if (part > 0) {
      T *const rows = own.rows<T>(part);
      to = {rows, rows + in.width, 2 * in.width, own.slot[part].data(),
            own_tables.data_ptr<T>() + (part - 1) * in.table.numel()};
    }
    in.list.for_each_piece(PIECE_EDGES, first, last, [&](int64_t from, int64_t end) {
      const T *const row = gradient.data_ptr<T>() + from * gradient.stride(0);
      kernel.backward(c, {row, row + gradient.stride(1), gradient.stride(0)}, to, from, end,
                      scratch.data_ptr<T>() + part * scratch.stride(0));
    });
  });
  own.add_to<T>(of_features.flatten(1));
  // Always in the order of the parts.
  at::parallel_for(0, in.table.numel(), 4096, [&](int64_t first, int64_t last) {
    T *const sum = of_table.data_ptr<T>();
    for (int64_t part = 1; part < parts; part++) {
      const T *const from = own_tables.data_ptr<T>() + (part - 1) * in.table.numel();
      for (int64_t i = first; i < last; i++) sum[i] += from[i];
    }
  });
}

static Tensor dual_forward_cpu(const Tensor &features, const Tensor &edges,
                               const Tensor &edge_tangents, const Tensor &first_row,
                               const Tensor &basis, const Tensor &table, const Tensor &center,
                               const Tensor &neighbor, int64_t n_local, const Tensor &paths,
                               const Tensor &terms, const Tensor &coefficients)
{
  const TrainingInputs in = checked(features, edges, &edge_tangents, first_row, basis, table,
                                    center, neighbor, n_local, paths, terms, coefficients);
  const Tensor messages = pooled_empty({n_local, 2, in.plan.message_width}, features.scalar_type());
  AT_DISPATCH_FLOATING_TYPES(features.scalar_type(), "dual_convolution", [&] {
    run_dual_forward<scalar_t>(in, messages);
  });
  return messages;
}

static std::tuple<Tensor, Tensor>
dual_backward_cpu(const Tensor &gradient, const Tensor &features, const Tensor &edges,
                  const Tensor &edge_tangents, const Tensor &first_row, const Tensor &basis,
                  const Tensor &table, const Tensor &center, const Tensor &neighbor,
                  int64_t n_local, const Tensor &paths, const Tensor &terms,
                  const Tensor &coefficients)
{
  const TrainingInputs in = checked(features, edges, &edge_tangents, first_row, basis, table,
                                    center, neighbor, n_local, paths, terms, coefficients);
  check_gradient(gradient, in, {n_local, 2, in.plan.message_width});
  const Tensor of_features = pooled_zeros(features.sizes(), features.scalar_type());
  const Tensor of_table = pooled_zeros(table.sizes(), features.scalar_type());
  AT_DISPATCH_FLOATING_TYPES(features.scalar_type(), "dual_convolution", [&] {
    run_dual_backward<scalar_t>(in, gradient.contiguous(), of_features, of_table);
  });
  return {of_features, of_table};
}

TORCH_LIBRARY_FRAGMENT(hienet, library)
{
  library.def("training_convolution(Tensor features, Tensor edges, Tensor first_row, Tensor basis, "
              "Tensor table, Tensor center, Tensor neighbor, int n_local, Tensor paths, "
              "Tensor terms, Tensor coefficients) -> Tensor");
  library.def("training_convolution_backward(Tensor gradient, Tensor features, Tensor edges, "
              "Tensor first_row, Tensor basis, Tensor table, Tensor center, Tensor neighbor, "
              "int n_local, Tensor paths, Tensor terms, Tensor coefficients) -> (Tensor, Tensor)");
  library.def("dual_convolution(Tensor features, Tensor edges, Tensor edge_tangents, "
              "Tensor first_row, Tensor basis, Tensor table, Tensor center, Tensor neighbor, "
              "int n_local, Tensor paths, Tensor terms, Tensor coefficients) -> Tensor");
  library.def("dual_convolution_backward(Tensor gradient, Tensor features, Tensor edges, "
              "Tensor edge_tangents, Tensor first_row, Tensor basis, Tensor table, Tensor center, "
              "Tensor neighbor, int n_local, Tensor paths, Tensor terms, Tensor coefficients) "
              "-> (Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(hienet, CPU, library)
{
  library.impl("training_convolution", forward_cpu);
  library.impl("training_convolution_backward", backward_cpu);
  library.impl("dual_convolution", dual_forward_cpu);
  library.impl("dual_convolution_backward", dual_backward_cpu);
}

}    // namespace hienet
