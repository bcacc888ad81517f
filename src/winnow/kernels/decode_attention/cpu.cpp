// One query per head against the cache: blocks of positions, each with its own maximum, combined in order.
#include "block.hpp"
#include "store.hpp"

namespace winnow::WINNOW_LEVEL {

void append_kv(const KvBlock& kv, std::int64_t position, const float* k, const float* v) {
  for (std::int64_t h = 0; h < kv.kv_heads; ++h) {
    store_rows(kv, true, h, position, 1, k + h * kv.width);
    store_rows(kv, false, h, position, 1, v + h * kv.width);
  }
}

// What one task reads, and the keys that the next one does: its own where there is none. Scales are those of int8.
template <class W, class Width>
struct Block {
  const W *keys, *values, *next;
  const float *key_scales, *value_scales;
  std::int64_t n;
  Width width;
};

static std::int64_t distance(const void* from, const void* to) {
  return static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(to) - reinterpret_cast<std::uintptr_t>(from));
}

template <int kQueries, class W, class Width>
static void attend_block(const float* queries, const Block<W, Width>& block, float scale, bool is_first, bool is_last,
                         Parts parts) {
  alignas(64) float scores[kBlock * kQueries];
  const std::int64_t n = block.n;
  const Width width = block.width;
  if (is_first) {
    score<kQueries, true>(queries, block.keys, n, width, scale, distance(block.keys, block.values), scores);
  } else {
    score<kQueries, false>(queries, block.keys, n, width, scale, 0, scores);
  }
  if (block.key_scales) multiply_by<kQueries>(block.key_scales, n, scores);
  exponentiate<kQueries>(scores, n, parts);
  if (block.value_scales) multiply_by<kQueries>(block.value_scales, n, scores);
  if (is_last && block.next != block.keys) {
    sum_values<kQueries, true>(scores, block.values, n, width, distance(block.values, block.next), parts);
  } else {
    sum_values<kQueries, false>(scores, block.values, n, width, 0, parts);
  }
}

// The same for the `left` query heads that share it; the first of them read it from memory.
template <int kQueries, class W, class Width>
static void attend_sharers(const float* queries, const Block<W, Width>& block, float scale, std::int64_t left,
                           bool is_first, Parts parts) {
  for (; left >= kQueries; left -= kQueries, is_first = false) {
    attend_block<kQueries>(queries, block, scale, is_first, left == kQueries, parts);
    queries += kQueries * block.width;
    parts.first += kQueries * parts.stride;
  }
  if constexpr (kQueries > 1) {
    if (left > 0) attend_sharers<kQueries / 2>(queries, block, scale, left, is_first, parts);
  }
}

// The parts of one head, weighted by exp(their maximum - the highest maximum).
static void combine(Parts parts, std::int64_t blocks, std::int64_t width, float* out) {
  float highest = parts.maximum(0);
  for (std::int64_t b = 1; b < blocks; ++b) highest = parts.maximum(b) > highest ? parts.maximum(b) : highest;
  float total = 0.f;
  for (std::int64_t e = 0; e < width; ++e) out[e] = 0.f;
  for (std::int64_t b = 0; b < blocks; ++b) {
    float lanes[kLanes];
    store(lanes, exponential(splat(parts.maximum(b) - highest)));
    total += lanes[0] * parts.total(b);
    const float* values = parts.values(b);
    for (std::int64_t e = 0; e < width; ++e) out[e] += lanes[0] * values[e];
  }
  for (std::int64_t e = 0; e < width; ++e) out[e] /= total;
}

template <class W, class Width>
static void attend_typed(Context& context, const float* q, std::int64_t heads, const KvBlock& kv, std::int64_t start,
                         std::int64_t length, float scale, const std::int32_t* listed, std::int64_t count, float* out,
                         Width width) {
  const std::int64_t shared = heads / kv.kv_heads, span = length - start;
  // As few blocks as there can be, of about one size: beyond the end of a short one memory is prefetched in vain.
  const std::int64_t fewest = (span + kBlock - 1) / kBlock;
  const std::int64_t size = ((span + fewest - 1) / fewest + kUnit - 1) / kUnit * kUnit;
  const std::int64_t blocks = (span + size - 1) / size;
  const std::int64_t part = Parts::kHead + (width + 15) / 16 * 16;
  float* queries = context.scratch.floats(0, heads * width);
  float* parts = context.scratch.floats(1, heads * blocks * part);
  const auto *keys = reinterpret_cast<const W*>(kv.keys), *values = reinterpret_cast<const W*>(kv.values);
  const auto head = [&](std::int64_t place) { return listed ? listed[place] : place; };
  const auto row = [&](std::int64_t task) { return head(task / blocks) * kv.capacity + start + task % blocks * size; };
  const auto finish = [&](std::int64_t kv_head) {
    for (std::int64_t h = kv_head * shared; h < (kv_head + 1) * shared; ++h) {
      combine(Parts{parts + h * blocks * part, part}, blocks, width, out + h * width);
    }
  };
  for (std::int64_t h = 0; h < heads; ++h) split<W>(q + h * width, width, queries + h * width);
  auto job = [&](Pool& pool) {
    each_block_ahead(pool, 0, count * blocks, [&](std::int64_t task, std::int64_t next) {
      const std::int64_t kv_head = head(task / blocks), b = task % blocks;
      const W* first = keys + row(task) * width;
      const Block<W, Width> block{first,
                                  values + row(task) * width,
                                  next < 0 ? first : keys + row(next) * width,
                                  kv.key_scales ? kv.key_scales + row(task) : nullptr,
                                  kv.value_scales ? kv.value_scales + row(task) : nullptr,
                                  b + 1 < blocks ? size : span - b * size,
                                  width};
      const Parts mine{parts + (kv_head * shared * blocks + b) * part, blocks * part};
      attend_sharers<kMostQueries>(queries + kv_head * shared * width, block, scale, shared, true, mine);
      if (blocks == 1) finish(kv_head);
    });
    pool.wait(0, count * blocks);
    if (blocks == 1) return;
    each_block(pool, 1, count, [&](std::int64_t place) { finish(head(place)); });
    pool.wait(1, count);
  };
  run_job(context.pool, 2 * count * span * width * std::int64_t(sizeof(W)), job);
}

void attend(Context& context, const float* q, std::int64_t heads, const KvBlock& kv, std::int64_t start,
            std::int64_t length, float scale, const std::int32_t* listed, std::int64_t count, float* out) {
  const auto typed = [&](auto w) {
    const auto wide = [&](auto width) {
      attend_typed<decltype(w)>(context, q, heads, kv, start, length, scale, listed, count, out, width);
    };
    kv.width == 64 ? wide(Fixed<64>{}) : kv.width == 128 ? wide(Fixed<128>{}) : wide(kv.width);
  };
  switch (kv.dtype) {
    case Dtype::bfloat16: return typed(bf16{});
    case Dtype::int8: return typed(int8{});
    default: return typed(float{});
  }
}

}  // namespace winnow::WINNOW_LEVEL
