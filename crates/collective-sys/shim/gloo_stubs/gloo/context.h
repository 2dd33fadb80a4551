// Stand-in for gloo's header, which the libtorch wheel does not carry: just the opaque types that
// ProcessGroupGloo.hpp names by pointer, and two exported members. Never construct one of these.
#pragma once
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>
namespace gloo {
namespace transport {
class Device;
class UnboundBuffer;
} // namespace transport
class Context {
 public:
  void setTimeout(std::chrono::milliseconds timeout);
  void closeConnections();
};
} // namespace gloo
