// How the command line is put together: each command registers its options and what to do; main()
// runs the one that was chosen, prints its error and sets the exit code.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <functional>
#include <nlohmann/json.hpp>
#include <span>
#include <string>

#include "base/result.h"

namespace trimpot::cli {

// Set by the callback of the chosen command; run by main() after parsing.
using Action = std::function<Status()>;

void add_bench(CLI::App& app, Action& action);
void add_chat(CLI::App& app, Action& action);
void add_compare(CLI::App& app, Action& action);
void add_diff(CLI::App& app, Action& action);
void add_eval(CLI::App& app, Action& action);
void add_fit(CLI::App& app, Action& action);
void add_inspect(CLI::App& app, Action& action);
void add_merge(CLI::App& app, Action& action);
void add_quantize(CLI::App& app, Action& action);
void add_run(CLI::App& app, Action& action);
void add_serve(CLI::App& app, Action& action);
void add_tune(CLI::App& app, Action& action);

// Checks of options' numbers. Neither a minus sign before an unsigned number nor a NaN passes, as
// they do CLI11's own.
CLI::Validator whole_number(std::uint64_t least, std::uint64_t most = UINT64_MAX);
CLI::Validator number_between(double least, double most);
CLI::Validator finite_number();
CLI::Validator not_empty();  // $KEY that is not set is no key

// Told before the work and not after it: an output that is one of the inputs (empty names are
// none), or that cannot be written.
Status check_output_file(const std::string& output, std::span<const std::string> inputs);

// One line without its end. Names of files may be of any bytes: what is not UTF-8 is replaced.
std::string dump(const nlohmann::ordered_json& json);
double file_bytes(const std::string& path);  // 0 if it is no regular file

// Results go to stdout, everything else to stderr. Both give an error if the write fails (a full
// disk, a closed pipe).
Status print(const std::string& text);  // as it is, no line end added
void note(const std::string& line);     // a line on stderr

// "98.1 MB", "1.23 GB" (powers of ten, as file managers show).
std::string format_bytes(double bytes);

// Peak resident memory of this process so far, in bytes; now: resident at the moment.
std::size_t peak_memory();
std::size_t resident_memory();
// Memory that the system can still give to programs (MemAvailable), 0 if unknown.
std::size_t available_memory();

}  // namespace trimpot::cli
