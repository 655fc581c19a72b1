// Which device a text such as SAGE_CUDA_DEVICE names: its number, or its UUID as the driver's tools
// print it, whole or the beginning of it.
#ifndef SAGE_CUDA_HOST_FIND_DEVICE_H_
#define SAGE_CUDA_HOST_FIND_DEVICE_H_

#include <cctype>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

namespace sage::cuda {

// "GPU-" and 32 hexadecimal digits in groups of 8, 4, 4, 4 and 12.
inline std::string UuidText(const unsigned char* bytes) {
  static const char kDigits[] = "0123456789abcdef";
  std::string text = "GPU-";
  for (int n = 0; n < 16; ++n) {
    if (n == 4 || n == 6 || n == 8 || n == 10) text += '-';
    text += kDigits[bytes[n] >> 4];
    text += kDigits[bytes[n] & 15];
  }
  return text;
}

// The place in `uuids`, or -1 and why. A slice of a device (MIG) tells its UUID as "MIG-...". A
// device that does not answer has the UUID "".
inline int FindDevice(const std::string& wanted, const std::vector<std::string>& uuids,
                      std::string* reason) {
  const auto fail = [&](const std::string& why) {
    *reason = why;
    return -1;
  };
  const std::string count = std::to_string(uuids.size());
  const std::string shown =
      uuids.size() == 1 ? "the driver shows 1 device" : "the driver shows " + count + " devices";
  if (!wanted.empty() && wanted.find_first_not_of("0123456789") == std::string::npos) {
    if (wanted.size() < 4 && std::strtoul(wanted.c_str(), nullptr, 10) < uuids.size()) {
      return static_cast<int>(std::strtoul(wanted.c_str(), nullptr, 10));
    }
    return fail("there is no CUDA device " + wanted + ": " + shown);
  }
  std::string lowered;
  for (const char c : wanted) {
    lowered += static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  }
  const bool prefixed = lowered.rfind("gpu-", 0) == 0 || lowered.rfind("mig-", 0) == 0;
  const std::string digits = prefixed ? lowered.substr(4) : "";
  if (digits.empty() || digits.find_first_not_of("0123456789abcdef-") != std::string::npos) {
    return fail("'" + wanted + "' is neither the number of a CUDA device nor a UUID (GPU-...)");
  }
  int found = -1;
  for (size_t n = 0; n < uuids.size(); ++n) {
    if (uuids[n].size() < 4 || uuids[n].compare(4, digits.size(), digits) != 0) continue;
    if (found >= 0) return fail("more than one CUDA device has a UUID that begins with " + wanted);
    found = static_cast<int>(n);
  }
  return found >= 0 ? found : fail("no CUDA device has the UUID " + wanted + ": " + shown);
}

}  // namespace sage::cuda

#endif  // SAGE_CUDA_HOST_FIND_DEVICE_H_
