// The choice of kernels.
#include <gtest/gtest.h>

#include <cstdlib>

#include "kernels/kernels.h"
#include "support/compare.h"

namespace trimpot {
namespace {

class ForcedIsa : public testing::Test {
 protected:
  void TearDown() override { ::unsetenv("TRIMPOT_ISA"); }
};

TEST_F(ForcedIsa, IsTheOneThatRuns) {
  for (const IsaInfo& isa : list_isas()) {
    ::setenv("TRIMPOT_ISA", isa.name.c_str(), 1);
    const auto kernels = select_kernels();
    if (isa.usable) {
      ASSERT_TRUE(kernels) << kernels.error().message;
      EXPECT_EQ(*kernels, isa.kernels);
      EXPECT_EQ((*kernels)->name, isa.name);
    } else {
      ASSERT_FALSE(kernels);
      EXPECT_EQ(kernels.error().message, "TRIMPOT_ISA: this CPU cannot run the " + isa.name +
                                             " kernels, which need " + isa.needs);
    }
  }
}

// Tables of different instruction sets are different code: a table filled from the wrong one would
// pass every comparison of bits.
TEST_F(ForcedIsa, TablesAreDifferentCode) {
  const auto isas = list_isas();
  for (std::size_t a = 0; a < isas.size(); ++a)
    for (std::size_t b = 0; b < a; ++b) {
      EXPECT_NE(isas[a].name, isas[b].name);
      EXPECT_NE(isas[a].kernels->linear_int8, isas[b].kernels->linear_int8);
      // AMX adds to AVX-512's table.
      if (isas[a].name == "avx512" && isas[b].name == "amx")
        EXPECT_NE(isas[a].kernels->multiply_rounded, isas[b].kernels->multiply_rounded);
      else
        EXPECT_NE(isas[a].kernels->multiply, isas[b].kernels->multiply);
    }
}

TEST_F(ForcedIsa, WithoutTheVariableTheBestOne) {
  for (const char* value : {static_cast<const char*>(nullptr), ""}) {
    if (value != nullptr)
      ::setenv("TRIMPOT_ISA", value, 1);
    else
      ::unsetenv("TRIMPOT_ISA");
    const auto kernels = select_kernels();
    ASSERT_TRUE(kernels);
    EXPECT_EQ(*kernels, usable_kernels().front());
  }
}

TEST_F(ForcedIsa, UnknownNamesAreErrors) {
  for (const char* name : {"avx9", "AVX2", " avx2"}) {
    ::setenv("TRIMPOT_ISA", name, 1);
    const auto kernels = select_kernels();
    ASSERT_FALSE(kernels);
    const std::string& message = kernels.error().message;
    EXPECT_TRUE(message.starts_with("TRIMPOT_ISA: there are no kernels called \"" +
                                    std::string(name) + "\"; this CPU can run: "))
        << message;
    EXPECT_TRUE(message.ends_with("scalar")) << message;
  }
}

}  // namespace
}  // namespace trimpot
