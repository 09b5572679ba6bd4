// Scores jets with an ONNX file that `kdfast export` wrote, as a trigger would: one thread, no Python.
//
// usage: score_jets TAGGER.onnx JETS.csv SCORES.csv [BATCH]
//
// JETS.csv: a header, then a line for each constituent: jet,pt,eta,phi,energy. Jets are numbered from 0 in rising
// order; a number that is left out below the last one is a jet without constituents. pt and energy in GeV. SCORES.csv:
// a header, then jet,logit,probability of signal. BATCH: jets a call; default 1.
#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <iostream>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

using Constituent = std::array<float, 4>;  // pt, eta, phi, energy
using Jet = std::vector<Constituent>;

std::vector<Jet> read_jets(const std::string& path) {
    std::ifstream file(path);
    if (!file) throw std::runtime_error(path + ": can't be read");
    std::vector<Jet> jets;
    std::string line;
    std::getline(file, line);  // header
    for (int64_t number = 2; std::getline(file, line); ++number) {
        long jet;
        Constituent c;
        const int found = std::sscanf(line.c_str(), "%ld,%f,%f,%f,%f", &jet, &c[0], &c[1], &c[2], &c[3]);
        if (found != 5 || jet < 0 || jet + 1 < static_cast<long>(jets.size()))
            throw std::runtime_error(path + ", line " + std::to_string(number) + ": must be jet,pt,eta,phi,energy");
        jets.resize(static_cast<size_t>(jet) + 1);
        jets.back().push_back(c);
    }
    return jets;
}

// The network, with its input and output as the file describes them.
class Tagger {
  public:
    explicit Tagger(const std::string& path)
        : environment_(ORT_LOGGING_LEVEL_WARNING, "trigger"), session_(environment_, path.c_str(), one_thread()) {
        const auto shape = session_.GetOutputTypeInfo(0).GetTensorTypeAndShapeInfo().GetShape();
        if (shape.size() != 2 || shape[1] != 1) throw std::runtime_error(path + ": has not one logit a jet");
    }

    // What kdfast wrote about the network; empty: nothing of this name.
    std::string about(const char* name) {
        Ort::AllocatorWithDefaultOptions allocator;
        const auto text = session_.GetModelMetadata().LookupCustomMetadataMapAllocated(name, allocator);
        return text ? text.get() : "";
    }

    // Logits of jets first … last − 1.
    std::vector<float> logits(const std::vector<Jet>& jets, size_t first, size_t last) {
        size_t longest = 1;
        for (size_t jet = first; jet < last; ++jet) longest = std::max(longest, jets[jet].size());
        input_.assign((last - first) * longest * 4, 0.0f);  // pt = 0: padding
        for (size_t jet = first; jet < last; ++jet)
            for (size_t i = 0; i < jets[jet].size(); ++i)
                std::copy(jets[jet][i].begin(), jets[jet][i].end(), &input_[((jet - first) * longest + i) * 4]);
        const std::array<int64_t, 3> shape{static_cast<int64_t>(last - first), static_cast<int64_t>(longest), 4};
        const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
        const auto input = Ort::Value::CreateTensor<float>(memory, input_.data(), input_.size(), shape.data(), 3);
        const char* const inputs[] = {"jets"};
        const char* const outputs[] = {"logits"};
        const auto found = session_.Run(Ort::RunOptions{nullptr}, inputs, &input, 1, outputs, 1);
        const float* const values = found[0].GetTensorData<float>();
        return {values, values + (last - first)};
    }

  private:
    static Ort::SessionOptions one_thread() {
        Ort::SessionOptions options;
        options.SetIntraOpNumThreads(1);
        options.SetInterOpNumThreads(1);
        return options;
    }

    Ort::Env environment_;
    Ort::Session session_;
    std::vector<float> input_;  // kept from call to call
};

void run(const std::string& model, const std::string& from, const std::string& to, size_t batch) {
    using Clock = std::chrono::steady_clock;
    const std::vector<Jet> jets = read_jets(from);
    Tagger tagger(model);
    std::cout << "view: " << tagger.about("view") << "\nunits: " << tagger.about("units") << '\n';
    std::vector<float> logits;
    std::vector<double> microseconds;
    for (size_t first = 0; first < jets.size(); first += batch) {
        const auto start = Clock::now();
        const std::vector<float> found = tagger.logits(jets, first, std::min(jets.size(), first + batch));
        microseconds.push_back(std::chrono::duration<double, std::micro>(Clock::now() - start).count());
        logits.insert(logits.end(), found.begin(), found.end());
    }
    std::ofstream file(to);
    file << "jet,logit,probability\n";
    file.precision(9);  // tells all float32 apart
    for (size_t jet = 0; jet < logits.size(); ++jet)
        file << jet << ',' << logits[jet] << ',' << 1.0f / (1.0f + std::exp(-logits[jet])) << '\n';
    if (!file.flush()) throw std::runtime_error(to + ": can't be written");
    if (microseconds.empty()) return;
    std::sort(microseconds.begin(), microseconds.end());
    std::cout << logits.size() << " jets, " << batch << " a call: p50 " << microseconds[microseconds.size() / 2]
              << " us, p99 " << microseconds[microseconds.size() * 99 / 100] << " us\n";
}

}  // namespace

int main(int argc, char** argv) {
    if (argc < 4 || argc > 5) {
        std::cerr << "usage: score_jets TAGGER.onnx JETS.csv SCORES.csv [BATCH]\n";
        return 2;
    }
    try {
        const long batch = argc == 5 ? std::atol(argv[4]) : 1;
        run(argv[1], argv[2], argv[3], static_cast<size_t>(std::max(1L, batch)));
    } catch (const std::exception& error) {
        std::cerr << "score_jets: " << error.what() << '\n';
        return 1;
    }
}
