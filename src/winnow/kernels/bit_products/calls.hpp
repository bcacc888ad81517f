// Bit products as Python calls them: at once, never recorded. No call reads or writes outside an array.
#pragma once

#include <utility>

#include "../native/calls.hpp"

namespace winnow {

using Words = Array<const std::uint64_t, 2>;
using Pairs = Array<std::int32_t, 1>;

// Returns how many pairs were found, and how many were within `limit` before whole vectors were compared.
inline std::pair<std::int64_t, std::int64_t> bit_products(Cpu& cpu, Words rows, Words planes, std::int64_t n_columns,
                                                          std::int64_t limit, std::optional<Words> whole_rows,
                                                          std::optional<Words> whole_columns, std::int64_t whole_limit,
                                                          std::int64_t after, Pairs out_rows, Pairs out_columns,
                                                          Pairs out_distances) {
  expect("words of planes", length(planes), length(rows, 1));
  if (length(planes, 1) % 8 || n_columns < 0 || n_columns > length(planes, 1)) {
    refuse("planes hold " + std::to_string(length(planes, 1)) + " columns, expected a multiple of 8 that is at least " +
           std::to_string(n_columns) + ".");
  }
  if (whole_rows.has_value() != whole_columns.has_value()) refuse("whole vectors of one side only were given.");
  std::int64_t words = 0;
  if (whole_rows) {
    words = length(*whole_rows, 1);
    expect("whole rows", length(*whole_rows), length(rows));
    if (length(*whole_columns) < n_columns) refuse("there are fewer whole columns than columns.");
    expect("words of the whole columns", length(*whole_columns, 1), words);
  }
  expect("room for columns", length(out_columns), length(out_rows));
  expect("room for distances", length(out_distances), length(out_rows));
  std::int64_t found = 0, survivors = 0;
  const BitScan scan{rows.data(),
                     planes.data(),
                     length(rows),
                     n_columns,
                     length(rows, 1),
                     length(planes, 1),
                     limit,
                     whole_rows ? whole_rows->data() : nullptr,
                     whole_columns ? whole_columns->data() : nullptr,
                     words,
                     whole_limit,
                     after};
  const BitFound into{out_rows.data(), out_columns.data(), out_distances.data(), length(out_rows), &found, &survivors};
  Engine& engine = cpu.engine();
  std::lock_guard<std::mutex> lock(engine.one_call);
  if (scan.scan_words > 0) engine.kernels.bit_products(engine.context, scan, into);
  return {found, survivors};
}

inline void check_listed(const char* name, const Indices& listed, std::int64_t things) {
  std::uint32_t highest = 0;
  for (std::int64_t p = 0; p < length(listed); ++p) {
    highest = std::max(highest, static_cast<std::uint32_t>(listed.data()[p]));
  }
  if (length(listed) && highest >= things) {
    refuse(std::string(name) + " lie outside 0.." + std::to_string(things - 1) + ".");
  }
}

inline void bit_distances(Cpu& cpu, Words a, Words b, Indices rows, Indices columns, Pairs out) {
  expect("words of b", length(b, 1), length(a, 1));
  expect("columns", length(columns), length(rows));
  expect("out", length(out), length(rows));
  check_listed("rows", rows, length(a));
  check_listed("columns", columns, length(b));
  Engine& engine = cpu.engine();
  std::lock_guard<std::mutex> lock(engine.one_call);
  engine.kernels.bit_distances(engine.context, a.data(), b.data(), length(a, 1), rows.data(), columns.data(),
                               length(rows), out.data());
}

inline void bit_keys(Cpu& cpu, Words planes, Indices positions, Array<std::uint64_t, 1> out) {
  expect("out", length(out), length(planes, 1));
  check_listed("positions", positions, 64 * length(planes));
  if (length(positions) > 64) refuse("more than 64 positions were given.");
  Engine& engine = cpu.engine();
  std::lock_guard<std::mutex> lock(engine.one_call);
  engine.kernels.bit_keys(engine.context, planes.data(), length(planes, 1), positions.data(), length(positions),
                          out.data());
}

inline bool pack_signs(Cpu& cpu, Array<const std::int8_t, 2> signs, Array<std::uint64_t, 2> out) {
  expect("rows of out", length(out), length(signs));
  expect("words of out", length(out, 1), (length(signs, 1) + 63) / 64);
  Engine& engine = cpu.engine();
  std::lock_guard<std::mutex> lock(engine.one_call);
  return engine.kernels.pack_signs(engine.context, signs.data(), length(signs), length(signs, 1), out.data());
}

}  // namespace winnow
