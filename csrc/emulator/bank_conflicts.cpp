#include "emulator/bank_conflicts.h"

#include <algorithm>
#include <array>
#include <map>
#include <string_view>
#include <tuple>

namespace kdfast::emulator {
namespace {

constexpr int kBanks = 32, kWordBytes = 4, kMaxWarps = 32;
constexpr uintptr_t kNone = 0;  // no address

struct Place {
    Site site;
    Access how;
    int bytes;
    auto key() const { return std::tuple(std::string_view(site.file_name()), site.line(), site.column(), how, bytes); }
    bool operator<(const Place& other) const { return key() < other.key(); }
};

using Addresses = std::array<uintptr_t, 32>;  // of the lanes

// What a warp has done at one place since it last met.
struct Open {
    int times[32] = {};  // that each lane was there
    std::vector<Addresses> accesses;
};

struct Count {
    int64_t warps = 0, conflicts = 0;
    int most = 0;
};

std::map<Place, Open> open[kMaxWarps];
std::map<Place, Count> counts;

// The most different words of one bank that lanes [first, end) want; 0 if none of them wants any.
int passes(const Addresses& addresses, int bytes, int first, int end) {
    std::vector<uintptr_t> words;
    for (int lane = first; lane < end; ++lane) {
        const uintptr_t address = addresses[static_cast<size_t>(lane)];
        if (address == kNone) continue;
        const uintptr_t last = (address + static_cast<uintptr_t>(bytes) - 1) / kWordBytes;
        for (uintptr_t word = address / kWordBytes; word <= last; ++word) words.push_back(word);
    }
    std::sort(words.begin(), words.end());
    words.erase(std::unique(words.begin(), words.end()), words.end());
    int of_bank[kBanks] = {};
    for (const uintptr_t word : words) ++of_bank[word % kBanks];
    return *std::max_element(of_bank, of_bank + kBanks);
}

void add(Count& count, const Addresses& addresses, int bytes) {
    const int lanes = std::min(32, kBanks * kWordBytes / bytes);
    ++count.warps;
    for (int first = 0; first < 32; first += lanes) {
        const int n = passes(addresses, bytes, first, first + lanes);
        count.conflicts += std::max(n - 1, 0);
        count.most = std::max(count.most, n);
    }
}

}  // namespace

void start_counting_accesses() {
    for (auto& of_warp : open) of_warp.clear();
    counts.clear();
    counts_accesses = true;
}

std::vector<AccessCount> access_counts() {
    std::vector<AccessCount> result;
    for (const auto& [place, count] : counts)
        result.push_back({place.site, place.how, place.bytes, count.warps, count.conflicts, count.most});
    return result;
}

void count_access(Access how, const void* address, size_t bytes, size_t alignment, const Site& site) {
    if (!counts_accesses) return;
    size_t piece = std::min(alignment, size_t{16});  // the largest access: 16 bytes
    while (bytes % piece != 0) piece /= 2;
    Open& at_place = open[thread->warp][{site, how, static_cast<int>(piece)}];
    for (size_t done = 0; done < bytes; done += piece) {
        const auto n = static_cast<size_t>(at_place.times[thread->lane]++);
        if (n == at_place.accesses.size()) at_place.accesses.push_back({});
        at_place.accesses[n][static_cast<size_t>(thread->lane)] = reinterpret_cast<uintptr_t>(address) + done;
    }
}

void close_accesses(int warp) {
    for (const auto& [place, at_place] : open[warp])
        for (const Addresses& addresses : at_place.accesses) add(counts[place], addresses, place.bytes);
    open[warp].clear();
}

}  // namespace kdfast::emulator
