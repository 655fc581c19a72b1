// What a call reports: nothing is thrown across layers, and TypeScript words the errors that users
// see.
#ifndef SAGE_STATUS_H_
#define SAGE_STATUS_H_

namespace sage {

enum class StatusCode { kOk, kInvalidArgument, kOutOfMemory, kUnsupported, kCancelled, kInternal };

struct Status {
  StatusCode code = StatusCode::kOk;
  const char* message = "";  // static storage

  bool ok() const { return code == StatusCode::kOk; }
  static Status Ok() { return {}; }
  static Status Invalid(const char* message) { return {StatusCode::kInvalidArgument, message}; }
};

}  // namespace sage

#endif  // SAGE_STATUS_H_
