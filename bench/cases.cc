#include "bench/cases.h"

#include <fmt/format.h>

#include <memory>

#include "base/rng.h"
#include "format/grouped.h"
#include "sys/aligned_buffer.h"

namespace trimpot::bench {
namespace {

// gate_proj of SmolLM2-135M.
constexpr std::int64_t kRows = 1536, kColumns = 576;

enum class Kind { kOffsets, kZeros, kConstant, kNf4 };
struct Format {
  const char* name;
  int bits;
  std::int64_t group;
  Kind kind;
};
constexpr Format kFormats[] = {{"Q4_1", 4, 32, Kind::kOffsets},
                               {"Q8_0", 8, 32, Kind::kConstant},
                               {"3 bits g128", 3, 128, Kind::kZeros},
                               {"4 bits g128", 4, 128, Kind::kZeros},
                               {"4 bits rows", 4, kColumns, Kind::kZeros},
                               {"NF4", 4, 64, Kind::kNf4}};

Matrix make_matrix(const Format& format) {
  GroupedCodes codes;
  codes.bits = format.bits;
  codes.rows = kRows;
  codes.columns = kColumns;
  codes.group_size = format.group;
  codes.zero_point = format.kind == Kind::kConstant ? 1 << (format.bits - 1) : 0;
  if (format.kind == Kind::kNf4) codes.book = CodeBook::kNf4;
  const CounterRng random(7, 0);
  codes.codes.resize(static_cast<std::size_t>(kRows * codes.view().row_bytes()));
  for (std::size_t i = 0; i < codes.codes.size(); ++i)
    codes.codes[i] = static_cast<std::uint8_t>(random.bits(i));
  const auto groups = static_cast<std::size_t>(kRows * codes.view().groups());
  codes.scales.assign(groups, f32_to_f16(0.01f));
  if (format.kind == Kind::kZeros) codes.zeros.assign(groups, f32_to_f16(7.0f));
  if (format.kind == Kind::kOffsets) codes.offsets.assign(groups, f32_to_f16(-0.07f));
  return std::move(*Matrix::pack_groups(codes.view()));  // sizes are right by construction
}

struct Operands {
  Operands(const Format& format, std::int64_t tokens)
      : weight(make_matrix(format)),
        x(static_cast<std::size_t>(tokens * kColumns)),
        y(static_cast<std::size_t>(tokens * kRows)),
        blocks(x.size() / 32),
        tiles(x.size() / 32 / kTiledTokens + kColumns / 32),
        int8{blocks.data(), kColumns / 32, tokens < kTiledTokens ? nullptr : tiles.data()} {
    const CounterRng random(8, 0);
    for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(random.uniform(i)) - 0.5f;
    for (std::size_t i = 0; i < y.size(); ++i) y[i] = static_cast<float>(random.uniform(i)) - 0.5f;
  }
  Matrix weight;
  AlignedBuffer<float> x, y;
  AlignedBuffer<Int8Block> blocks;
  AlignedBuffer<Int8Tile> tiles;
  Int8View int8;
};

Case linear_case(const Format& format, std::int64_t tokens) {
  return {fmt::format("linear_int8/{}/tokens {}", format.name, tokens),
          static_cast<double>(tokens * kRows * kColumns),
          static_cast<double>(kRows * kColumns * format.bits) / 8,
          [&format, tokens](const Kernels& k) -> std::function<void()> {
            auto o = std::make_shared<Operands>(format, tokens);
            k.quantize(o->x.data(), kColumns, kColumns, 0, tokens, o->int8);
            return [o, &k, tokens] {
              const MatrixView& w = o->weight.view();
              k.linear_int8(w, o->int8, 0, tokens, 0, w.tiles, nullptr, nullptr, o->y.data(), kRows,
                            false);
            };
          }};
}

Case scale_gradient_case(const Format& format, std::int64_t tokens) {
  return {fmt::format("scale_gradient_int8/{}/tokens {}", format.name, tokens),
          static_cast<double>(tokens * kRows * kColumns),
          static_cast<double>(kRows * kColumns * format.bits) / 8,
          [&format, tokens](const Kernels& k) -> std::function<void()> {
            auto o = std::make_shared<Operands>(format, tokens);
            k.quantize(o->x.data(), kColumns, kColumns, 0, tokens, o->int8);
            const auto size = static_cast<std::size_t>(o->weight.view().groups * kRows);
            auto sums = std::make_shared<AlignedBuffer<float>>(2 * size + 128 * 32);
            return [o, sums, size, &k, tokens] {
              const MatrixView& w = o->weight.view();
              float* d_scale = sums->data();
              k.scale_gradient_int8(w, o->int8, o->y.data(), kRows, tokens, 0, w.tiles, d_scale,
                                    w.has_shifts() ? d_scale + size : nullptr, d_scale + 2 * size);
            };
          }};
}

constexpr std::int64_t kBlocks = kRows / kRoundedBlock;

enum class Form { kFloats, kInt16, kBytes };

// dx [tokens, 32 columns] = dy W of one chunk, unpacking included.
void input_gradient(const Kernels& k, Form form, Operands& o, std::int64_t tokens,
                    const RoundedView& int16, const RoundedBytes& bytes, float* panel) {
  const MatrixView& w = o.weight.view();
  float* scales = panel + kRows * 16;
  if (form == Form::kBytes) {
    auto* codes = reinterpret_cast<std::uint8_t*>(panel);
    k.unpack_columns_bytes(w, 0, 0, w.tiles, codes, scales);
    k.multiply_bytes(bytes, codes, scales, kRows, 0, tokens, o.x.data(), kColumns, 32, false);
  } else if (form == Form::kInt16) {
    auto* pairs = reinterpret_cast<std::int16_t*>(panel);
    k.unpack_columns_rounded(w, 0, 0, w.tiles, pairs, scales);
    k.multiply_rounded(int16, pairs, scales, kRows, 0, tokens, o.x.data(), kColumns, 32, false);
  } else {
    k.unpack_columns(w, 0, 0, w.tiles, false, panel);
    k.multiply({o.y.data(), kRows, 1}, {panel, Storage::kF32, 16, 32}, tokens, 32, kRows,
               o.x.data(), kColumns, false);
  }
}

Case input_gradient_case(const Format& format, std::int64_t tokens, Form form) {
  constexpr const char* kNames[] = {"f32", "int16", "bytes"};
  return {fmt::format("input_gradient_{}/{}/tokens {}", kNames[static_cast<int>(form)], format.name,
                      tokens),
          static_cast<double>(tokens * kRows * 32), static_cast<double>(kRows * format.bits * 4),
          [&format, tokens, form](const Kernels& k) -> std::function<void()> {
            if (form == Form::kInt16 && k.rounded == nullptr) return nullptr;
            if (form == Form::kBytes && k.round_row_bytes == nullptr) return nullptr;
            auto o = std::make_shared<Operands>(format, tokens);
            auto panel = std::make_shared<AlignedBuffer<float>>(kRows * 32);
            auto codes = std::make_shared<AlignedBuffer<std::int16_t>>(o->y.size());
            auto numbers = std::make_shared<AlignedBuffer<float>>(tokens * kBlocks);
            auto sums = std::make_shared<std::vector<std::int32_t>>(tokens * kBlocks);
            const RoundedView int16{codes->data(), kRows, numbers->data(), kBlocks};
            const RoundedBytes bytes{
                {reinterpret_cast<std::int8_t*>(codes->data()), kRows, numbers->data(), kBlocks},
                sums->data()};
            for (std::int64_t t = 0; t < tokens; ++t) {
              const float* y = o->y.data() + t * kRows;
              if (form == Form::kInt16)
                k.round_row(y, kRows, int16.row(t), int16.scales_of(t));
              else if (form == Form::kBytes)
                k.round_row_bytes(y, kRows, 0, bytes.row(t), bytes.scales_of(t),
                                  bytes.sums + t * kBlocks);
            }
            return [=, &k] { input_gradient(k, form, *o, tokens, int16, bytes, panel->data()); };
          }};
}

}  // namespace

std::vector<Case> all_cases() {
  std::vector<Case> cases;
  for (const Format& format : kFormats) {
    for (const std::int64_t tokens : {1, 8, 192}) cases.push_back(linear_case(format, tokens));
    cases.push_back(scale_gradient_case(format, 192));
    for (const Form form : {Form::kBytes, Form::kInt16, Form::kFloats})
      cases.push_back(input_gradient_case(format, 192, form));
  }
  return cases;
}

}  // namespace trimpot::bench
