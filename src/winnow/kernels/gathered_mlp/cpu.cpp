// The MLP over a list of neurons, record by record.
//
// Neurons belong to one of eight or sixteen teams by their number alone. A team's neurons are summed in the order of the
// list by one thread, the teams' sums in order at the end: the bits depend neither on the number of threads nor on
// whether neurons that do not fire are listed.
//
// Each thread reads eight records side by side, from their in-weights on to their out-weights, whose beginning is
// fetched before it is known whether the neurons fire; the eight records after them are known by then.
//
// Where the gates are given, a neuron's in-weights are its up row alone.
#include <utility>

#include "neuron.hpp"
#include "teams.hpp"

namespace winnow::WINNOW_LEVEL {

template <class W>
struct Mlp {
  const NeuronRecords& records;
  Teams teams;
  Activation activation;
  const Input<W>* x;
  const float* gates;  // of every neuron, activated, or null: to be computed
  float* sums;         // [team, width]
  Parts<W> parts{records};

  std::int64_t first() const { return gates ? parts.up() : 0; }  // what is read of a record, in elements from its start
};

template <class W>
struct Group {
  Row<W> in[kRows], out[kRows];  // in: from `first` on; the last neuron stands in for those that are missing
  const float* tails[kRows];
  float values[2 * kRows] = {};  // of the `firing` neurons whose rows are out[0], out[1], ...; before, the given gates
  int size = 0, firing = 0;
  std::int64_t team = 0;
  bool is_first = false, is_last = false;  // of its team
};

// The groups of the teams that this thread claims, one after the other.
template <class W>
class Stream {
 public:
  Stream(const Mlp<W>& mlp, Pool& pool) : mlp_(mlp), pool_(pool) { next_team(); }

  // The next eight neurons of a team, or a group of size 0 at the end.
  void read(Group<W>& group) {
    group.size = 0;
    if (team_ >= mlp_.teams.size()) return;
    group.team = team_;
    group.is_first = at_ == 0;
    for (int r = 0; r < kRows; ++r) {
      const std::int64_t j = at_ + r < count_ ? at_ + r : count_ - 1;
      const std::int64_t neuron = mlp_.teams.neuron(team_, j);
      group.in[r] = mlp_.parts.row(neuron) + mlp_.first();
      group.values[r] = mlp_.gates ? mlp_.gates[neuron] : 0.f;
      group.tails[r] = mlp_.parts.tail(neuron);
      prefetch(group.tails[r]);
    }
    group.size = static_cast<int>(count_ - at_ < kRows ? count_ - at_ : kRows);
    at_ += group.size;
    group.is_last = at_ == count_;
    if (group.is_last) next_team();
  }

 private:
  void next_team() {
    at_ = 0;
    for (team_ = pool_.claim(0); team_ < mlp_.teams.size(); team_ = pool_.claim(0)) {
      count_ = mlp_.teams.count(team_);
      if (count_ > 0) return;
      pool_.finish(0);
    }
  }

  const Mlp<W>& mlp_;
  Pool& pool_;
  std::int64_t team_ = 0, at_ = 0, count_ = 0;
};

// Computes the values of a group and keeps the neurons that fire, all of them where `keep_all`.
template <class W>
static void evaluate(const Mlp<W>& mlp, Group<W>& group, bool keep_all) {
  float* values = group.values;
  const Parts<W>& parts = mlp.parts;
  Row<W> up[kRows], out[kRows];
  for (int r = 0; r < kRows; ++r) {
    up[r] = group.in[r] + (parts.up() - mlp.first());
    out[r] = group.in[r] + (parts.out() - mlp.first());
  }
  if (!mlp.gates) {
    part_dots<W>(parts, group.in, group.tails, 0, mlp.x, values, mlp.records.gated ? up : out);
    for (int r = 0; r < kRows; ++r) values[r] += group.tails[r][0];
    activate(mlp.activation, values);
  }
  if (mlp.records.gated) {
    float ups[kRows];
    part_dots<W>(parts, up, group.tails, parts.up(), mlp.x, ups, out);
    for (int r = 0; r < kRows; ++r) values[r] = values[r] == 0.f ? 0.f : values[r] * (ups[r] + group.tails[r][1]);
  }
  group.firing = 0;
  for (int r = 0; r < group.size; ++r) {
    if (keep_all || !(values[r] == 0.f)) {
      values[group.firing] = values[r];
      if constexpr (std::is_same_v<W, int8>) values[group.firing] *= parts.scale(group.tails[r], parts.out());
      group.out[group.firing++] = out[r];
    }
  }
}

// Adds the out-weights of a group to the sum of its team.
template <class W>
static void add(const Mlp<W>& mlp, Group<W>& group, const Group<W>& next) {
  float* sum = mlp.sums + group.team * mlp.records.width;
  if (group.is_first) {
    for (std::int64_t d = 0; d < mlp.records.width; ++d) sum[d] = 0.f;
  }
  if (group.firing > 0) {
    axpy8<W>(group.out, group.values, group.firing, mlp.records.width, sum, next.size > 0 ? next.in : group.in);
  } else {
    for (int r = 0; r < next.size; ++r) prefetch_start<W>(next.in[r], mlp.records.width);
  }
}

template <class W>
static void work_through(const Mlp<W>& mlp, Pool& pool) {
  Stream<W> stream(mlp, pool);
  Group<W> groups[2];
  Group<W> *now = &groups[0], *next = &groups[1];
  const bool keep_all = mlp.teams.is_dense();
  stream.read(*now);
  while (now->size > 0) {
    evaluate<W>(mlp, *now, keep_all);
    stream.read(*next);
    add<W>(mlp, *now, *next);
    if (now->is_last) pool.finish(0);
    std::swap(now, next);
  }
}

// out = the teams' sums, added in order, over the columns of one block; `begin` is a multiple of kPair
template <class W>
static void join(const float* sums, const Teams& teams, std::int64_t width, std::int64_t begin, std::int64_t end,
                 float* out) {
  for (std::int64_t d = begin; d < end; ++d) out[d] = 0.f;
  for (std::int64_t team = 0; team < teams.size(); ++team) {
    if (teams.count(team) == 0) continue;
    const float* sum = sums + team * width;
    std::int64_t d = begin;
    for (; d + kLanes <= end; d += kLanes) store(out + d, load(out + d) + load(sum + d));
    for (; d < end; ++d) out[d] += sum[d];
  }
  settle<W>(out + begin, end - begin);
}

template <class W>
static void mlp_typed(Context& context, const float* x, const NeuronRecords& records, const std::int32_t* indices,
                      std::int64_t count, Activation activation, const float* gates, float* out) {
  const std::int64_t width = records.width;
  auto* room = static_cast<std::int32_t*>(context.scratch.bytes(2, (indices ? count : 0) * 4 + 4));
  const Mlp<W> mlp{records, Teams(records.neurons, indices, count, room), activation,
                   input<W>(x, width, context.scratch.floats(0, input_floats(width))), gates,
                   context.scratch.floats(1, kMaxTeams * width)};
  const std::int64_t pieces = width < 512 ? 1 : context.pool.threads();
  auto job = [&](Pool& pool) {
    work_through(mlp, pool);
    pool.wait(0, mlp.teams.size());
    each_block(pool, 1, pieces, [&](std::int64_t piece) {
      const std::int64_t begin = piece * width / pieces / kPair * kPair;
      const std::int64_t end = piece + 1 < pieces ? (piece + 1) * width / pieces / kPair * kPair : width;
      join<W>(mlp.sums, mlp.teams, width, begin, end, out);
    });
    pool.wait(1, pieces);
  };
  run_job(context.pool, count * records.record_bytes, job);
}

void mlp(Context& context, const float* x, const NeuronRecords& records, const std::int32_t* indices,
         std::int64_t count, Activation activation, const float* gates, float* out) {
  of_weights(records.dtype, [&](auto w) {
    mlp_typed<decltype(w)>(context, x, records, indices, count, activation, gates, out);
  });
}

}  // namespace winnow::WINNOW_LEVEL
