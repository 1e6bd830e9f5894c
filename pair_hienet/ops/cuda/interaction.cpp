// SPDX-License-Identifier: GPL-2.0-or-later
// torch.ops.hienet.interaction on a GPU: the convolution's kernels, and the linear map by torch, for as many centers at a
// time as the workspace holds.

#include "../differentiable.h"
#include "../interaction_plan.h"
#include "convolution.h"
#include "device_call.h"
#include "device_edges.h"
#include "device_linear.h"
#include "node_rows.h"
#include "workspace.h"

#include <algorithm>
#include <limits>
#include <tuple>

namespace hienet::cuda {

using at::Tensor;

// ----------------------------------------------------------------------
// what is made once of a plan
// ----------------------------------------------------------------------

/// A `SparseRows` on a device.
struct DeviceRows {
  Tensor row_start, columns, coefficients;

  template <typename T> SparseRows<T> view() const
  {
    return {row_start.const_data_ptr<int32_t>(), columns.const_data_ptr<int32_t>(),
            coefficients.const_data_ptr<T>(), row_start.size(0) - 1};
  }
};

/// The same on the host, row by row.
struct HostRows {
  std::vector<std::vector<std::pair<int32_t, double>>> rows;

  explicit HostRows(int64_t n) : rows(n) {}
  void add(int64_t row, int64_t column, double coefficient)
  { rows[row].emplace_back(static_cast<int32_t>(column), coefficient); }

  DeviceRows to(const at::Device &device, at::ScalarType dtype) const
  {
    std::vector<int32_t> start = {0}, columns;
    std::vector<double> coefficients;
    for (const auto &row : rows) {
      for (const auto &[column, coefficient] : row) {
        columns.push_back(column);
        coefficients.push_back(coefficient);
      }
      start.push_back(static_cast<int32_t>(columns.size()));
    }
    return {on_device(start, at::kInt, device), on_device(columns, at::kInt, device),
            on_device(coefficients, at::kDouble, device).to(dtype)};
  }
};

/// Tasks of equal 2l+1 of the features; 0 stands for those without a kernel of their own.
struct KindOfTasks {
  int dim_in;
  int64_t first, n;
};

/// The convolution's tasks and sparse sums on a device.
struct DevicePlan {
  int64_t read_width, message_width;
  int64_t coupling_width = 0, sums_width = 0, n_tasks = 0;
  bool sends_all = false,
       makes_all = false;    // no column of the features, or of the messages, is left out
  std::vector<KindOfTasks> kinds;
  Tensor paths, tasks;
  DeviceRows couplings;    // from harmonics
  DeviceRows harmonics;    // from the sums of all tasks

  Tasks of(const KindOfTasks &kind) const
  {
    return {reinterpret_cast<const Task *>(tasks.const_data_ptr<int32_t>()) + kind.first, kind.n,
            kind.dim_in};
  }
};

/// Paths that read the same block of the features.
struct FeatureBlock {
  int64_t start, dim, channels;
  std::vector<size_t> paths;
  int64_t width() const { return dim * channels; }
};

static std::vector<FeatureBlock> feature_blocks(const InteractionPlan &plan)
{
  std::vector<FeatureBlock> blocks;
  for (size_t p = 0; p < plan.paths.size(); p++) {
    const Path &path = plan.paths[p];
    const auto found = std::find_if(blocks.begin(), blocks.end(), [&](const FeatureBlock &b) {
      return b.start == path.feature_start && b.dim == path.dim_in && b.channels == path.channels;
    });
    if (found != blocks.end())
      found->paths.push_back(p);
    else
      blocks.push_back({path.feature_start, path.dim_in, path.channels, {p}});
  }
  std::sort(blocks.begin(), blocks.end(), [](const FeatureBlock &a, const FeatureBlock &b) {
    return a.start < b.start;
  });
  for (size_t b = 1; b < blocks.size(); b++)
    TORCH_CHECK_VALUE(blocks[b - 1].start + blocks[b - 1].width() <= blocks[b].start, "path ",
                      blocks[b].paths[0],
                      " of the interaction reads columns that another path reads in another shape");
  return blocks;
}

/// 2l+1 of the features for which a kernel is compiled, if also its messages are of such dimensions; otherwise 0.
static int kind_of(const InteractionPlan &plan, const FeatureBlock &block)
{
  for (const size_t p : block.paths)
    if (plan.paths[p].dim_out > LARGEST_UNROLLED) return 0;
  return block.dim <= LARGEST_UNROLLED ? static_cast<int>(block.dim) : 0;
}

static DevicePlan make_plan(const InteractionPlan &plan, const Tensor &coefficients,
                            const at::Device &device, at::ScalarType dtype)
{
  constexpr int64_t GROUP = 4;    // couplings that are loaded together begin at a multiple of it
  DevicePlan result;
  result.read_width = plan.read_width;
  result.message_width = plan.message_width;
  const Tensor factors = coefficients.to(at::kCPU, at::kDouble).contiguous();
  const double *const factor = factors.const_data_ptr<double>();

  std::vector<int64_t> coupling_start;
  int64_t made = 0;
  for (const Path &path : plan.paths) {
    coupling_start.push_back(result.coupling_width);
    result.coupling_width += (path.dim_in * path.dim_out + GROUP - 1) / GROUP * GROUP;
    made += path.dim_out * path.channels;
  }
  result.makes_all = made == plan.message_width;
  HostRows couplings(result.coupling_width), harmonics(plan.n_harmonics);
  for (size_t p = 0; p < plan.paths.size(); p++)
    for (int64_t t = plan.paths[p].term_start; t < plan.paths[p].term_stop; t++)
      couplings.add(coupling_start[p] + plan.terms[t].index, plan.terms[t].harmonic, factor[t]);

  const auto blocks = feature_blocks(plan);
  std::vector<TaskPath> paths;
  std::vector<Task> tasks;
  int64_t read = 0;
  for (const int dim : {1, 3, 5, 7, 0}) {
    KindOfTasks kind = {dim, static_cast<int64_t>(tasks.size()), 0};
    for (const FeatureBlock &block : blocks) {
      if (kind_of(plan, block) != dim) continue;
      read += block.width();
      const auto first_path = static_cast<int32_t>(paths.size());
      for (const size_t p : block.paths) {
        const Path &path = plan.paths[p];
        paths.push_back({static_cast<int32_t>(path.dim_out), static_cast<int32_t>(path.out_start),
                         static_cast<int32_t>(path.out_channels),
                         static_cast<int32_t>(path.table_start),
                         static_cast<int32_t>(coupling_start[p])});
      }
      const int64_t step = WARP * (dim == 0 ? 1 : channels_of_a_lane(dim));
      for (int64_t first = 0; first < block.channels; first += step) {
        tasks.push_back({static_cast<int32_t>(block.start), static_cast<int32_t>(block.channels),
                         static_cast<int32_t>(first), static_cast<int32_t>(block.dim), first_path,
                         static_cast<int32_t>(paths.size()),
                         static_cast<int32_t>(result.sums_width),
                         static_cast<int32_t>(tasks.size())});
        for (const size_t p : block.paths) {
          const Path &path = plan.paths[p];
          for (int64_t t = path.term_start; t < path.term_stop; t++)
            harmonics.add(plan.terms[t].harmonic, result.sums_width + plan.terms[t].index,
                          factor[t]);
          result.sums_width += path.dim_in * path.dim_out;
        }
      }
    }
    kind.n = static_cast<int64_t>(tasks.size()) - kind.first;
    if (kind.n > 0) result.kinds.push_back(kind);
  }
  result.sends_all = read == plan.read_width;
  result.n_tasks = static_cast<int64_t>(tasks.size());
  constexpr int64_t LARGEST = std::numeric_limits<int32_t>::max();
  TORCH_CHECK_VALUE(result.sums_width <= LARGEST && result.message_width <= LARGEST &&
                        result.read_width <= LARGEST,
                    "the plan of the interaction has too many columns for a GPU");
  result.paths = structures_on_device(paths, device);
  result.tasks = structures_on_device(tasks, device);
  result.couplings = couplings.to(device, dtype);
  result.harmonics = harmonics.to(device, dtype);
  return result;
}

// ----------------------------------------------------------------------
// one call
// ----------------------------------------------------------------------

struct InteractionCall {
  std::shared_ptr<const DeviceEdges> list;
  std::shared_ptr<const DevicePlan> plan;
  std::shared_ptr<const DeviceLinear> linear;
  Tensor state, edges, table;
  int64_t kept_start;
  double cutoff;

  InteractionCall(const Tensor &state_rows, const Tensor &edge_rows, const Tensor &tables,
                  const Tensor &weights, const Tensor &transposed, const Tensor &center,
                  const Tensor &neighbor, int64_t n_local, double reach, const Tensor &paths,
                  const Tensor &terms, const Tensor &coefficients, const Tensor &map,
                  int64_t kept) : kept_start(kept), cutoff(reach)
  {
    check_interaction(state_rows, edge_rows, tables, weights, transposed, center, cutoff, paths,
                      terms, coefficients);
    list = DeviceEdges::of(center, neighbor, n_local, state_rows.size(0));
    linear = DeviceLinear::of(map, weights, transposed);
    static Memo<DevicePlan, LAYERS> memo;
    plan = memo.get(
        {paths, terms, coefficients},
        {state_rows.size(1), edge_rows.size(1), tables.size(0), linear->width_in(),
         linear->width_out(), kept_start, static_cast<int64_t>(state_rows.scalar_type())},
        [&] {
          const InteractionPlan host(paths, terms, state_rows, edge_rows, tables);
          host.check_linear_map(linear->width_in(), linear->width_out(), state_rows, kept_start);
          return make_plan(host, coefficients, state_rows.device(), state_rows.scalar_type());
        });
    state = rows(state_rows);
    edges = rows(edge_rows);
    table = tables.contiguous();
  }

  at::TensorOptions options() const { return state.options(); }

  /// Centers at which chunks begin, and the end of the last one.
  std::vector<int64_t> chunks(bool backward) const
  {
    const int64_t of_edge =
        plan->coupling_width + (backward ? plan->read_width + plan->sums_width + plan->n_tasks : 0);
    const double bytes = static_cast<double>(state.element_size()) *
        (static_cast<double>(list->n_local) * plan->message_width +
         static_cast<double>(list->n_edges) * of_edge);
    return chunks_of_centers(list->n_local, bytes);
  }
};

/// work(chunk) for every chunk, whose couplings are there.
template <typename T, typename Work>
static void for_each_chunk(const InteractionCall &in, bool backward, Stream stream,
                           const Work &work)
{
  const auto centers = in.chunks(backward);
  const auto edges = in.list->first_edges(centers);
  const int64_t n_intervals = in.table.size(1);
  for (size_t k = 0; k + 1 < centers.size(); k++) {
    const int64_t n_edges = edges[k + 1] - edges[k];
    const Tensor couplings = at::empty({n_edges, in.plan->coupling_width}, in.options());
    const ConvolutionChunk<T> chunk = {
        {in.table.const_data_ptr<T>(), n_intervals, static_cast<T>(n_intervals / in.cutoff)},
        in.list->row_start.const_data_ptr<int64_t>(),
        in.list->neighbor.const_data_ptr<int64_t>(),
        centers[k],
        centers[k + 1] - centers[k],
        edges[k],
        n_edges,
        in.state.const_data_ptr<T>(),
        in.state.stride(0),
        in.edges.const_data_ptr<T>(),
        in.edges.stride(0),
        couplings.data_ptr<T>(),
        in.plan->coupling_width,
        reinterpret_cast<const TaskPath *>(in.plan->paths.const_data_ptr<int32_t>())};
    make_couplings(chunk, in.plan->couplings.template view<T>(), stream);
    work(chunk);
  }
}

template <typename T> static void run_forward(const InteractionCall &in, const Tensor &output)
{
  const Stream stream = current_stream(in.state.device());
  for_each_chunk<T>(in, false, stream, [&](const ConvolutionChunk<T> &chunk) {
    const std::vector<int64_t> shape = {chunk.n_centers, in.plan->message_width};
    const Tensor messages = in.plan->makes_all ? at::empty(shape, in.options())
                                               : at::zeros(shape, in.options());
    for (const KindOfTasks &kind : in.plan->kinds)
      convolution_forward(chunk, in.plan->of(kind), messages.data_ptr<T>(), messages.stride(0),
                          stream);
    in.linear->apply(messages, output.narrow(0, chunk.first_center, chunk.n_centers), true);
  });
}

template <typename T>
static void run_backward(const InteractionCall &in, const Tensor &gradient, const Tensor &of_state,
                         const Tensor &of_edges)
{
  const Stream stream = current_stream(in.state.device());
  const DevicePlan &plan = *in.plan;
  for_each_chunk<T>(in, true, stream, [&](const ConvolutionChunk<T> &chunk) {
    const Tensor messages = at::empty({chunk.n_centers, plan.message_width}, in.options());
    in.linear->apply_transposed(gradient.narrow(0, chunk.first_center, chunk.n_centers), messages);
    const std::vector<int64_t> shape = {chunk.n_edges, plan.read_width};
    const Tensor of_features = plan.sends_all ? at::empty(shape, in.options())
                                              : at::zeros(shape, in.options());
    const Tensor of_couplings = at::empty({chunk.n_edges, plan.sums_width}, in.options());
    const Tensor of_fractions = at::empty({chunk.n_edges, plan.n_tasks}, in.options());
    const EdgeSums<T> sums = {of_features.data_ptr<T>(),  plan.read_width,
                              of_couplings.data_ptr<T>(), plan.sums_width,
                              of_fractions.data_ptr<T>(), plan.n_tasks};
    for (const KindOfTasks &kind : plan.kinds)
      convolution_backward(chunk, plan.of(kind), messages.const_data_ptr<T>(), messages.stride(0),
                           sums, stream);
    sum_edge_gradients(chunk, sums, plan.harmonics.template view<T>(), of_edges.data_ptr<T>(),
                       of_edges.stride(0), stream);
    const auto by_neighbor =
        in.list->by_neighbor(chunk.first_edge, chunk.first_edge + chunk.n_edges);
    sum_rows<T>({by_neighbor.view(),
                 {of_features.const_data_ptr<T>(), plan.read_width},
                 {},
                 T(1),
                 1,
                 plan.read_width,
                 of_state.data_ptr<T>(),
                 of_state.stride(0),
                 chunk.first_center > 0},
                stream);
  });
}

static Tensor forward(const Tensor &state, const Tensor &edges, const Tensor &table,
                      const Tensor &weights, const Tensor &transposed, const Tensor &center,
                      const Tensor &neighbor, int64_t n_local, double cutoff, const Tensor &paths,
                      const Tensor &terms, const Tensor &coefficients, const Tensor &linear,
                      int64_t kept_start)
{
  const c10::DeviceGuard guard(state.device());
  const InteractionCall in(state, edges, table, weights, transposed, center, neighbor, n_local,
                           cutoff, paths, terms, coefficients, linear, kept_start);
  const Tensor output = in.state.narrow(0, 0, n_local)
                            .narrow(1, kept_start, in.linear->width_out())
                            .clone(at::MemoryFormat::Contiguous);
  AT_DISPATCH_FLOATING_TYPES(output.scalar_type(), "interaction", [&] {
    run_forward<scalar_t>(in, output);
  });
  return output;
}

static std::tuple<Tensor, Tensor>
backward(const Tensor &gradient, const Tensor &state, const Tensor &edges, const Tensor &table,
         const Tensor &weights, const Tensor &transposed, const Tensor &center,
         const Tensor &neighbor, int64_t n_local, double cutoff, const Tensor &paths,
         const Tensor &terms, const Tensor &coefficients, const Tensor &linear, int64_t kept_start)
{
  const c10::DeviceGuard guard(state.device());
  const InteractionCall in(state, edges, table, weights, transposed, center, neighbor, n_local,
                           cutoff, paths, terms, coefficients, linear, kept_start);
  check_gradient_of_interaction(gradient, state, n_local, in.linear->width_out());
  const Tensor of_state = at::zeros(state.sizes(), in.options());
  const Tensor of_edges = at::zeros(edges.sizes(), in.options());
  of_state.narrow(0, 0, n_local).narrow(1, kept_start, in.linear->width_out()).copy_(gradient);
  AT_DISPATCH_FLOATING_TYPES(of_state.scalar_type(), "interaction", [&] {
    run_backward<scalar_t>(in, rows(gradient), of_state, of_edges);
  });
  return {of_state, of_edges};
}

TORCH_LIBRARY_IMPL(hienet, HIENET_DEVICE_KEY, library)
{
  library.impl("interaction", forward);
  library.impl("interaction_backward", backward);
}

}    // namespace hienet::cuda
