-- Sends the requests of a file (see request_set.py) in turn, over and over, and ends with one line of JSON.

local requests, sent = {}, 0

function init(args)
  local file = assert(io.open(args[1], "rb"))
  local token, content_type = file:read("*l"), file:read("*l")
  local headers = { ["Authorization"] = "Bearer " .. token, ["Content-Type"] = content_type }
  headers["Host"] = wrk.headers["Host"]
  while true do
    local line = file:read("*l")
    if not line then break end
    local path, size = line:match("^(%S+) (%d+)$")
    size = tonumber(size)
    requests[#requests + 1] = wrk.format("POST", path, headers, size > 0 and file:read(size) or "")
  end
  file:close()
end

function request()
  sent = sent + 1
  return requests[(sent - 1) % #requests + 1]
end

function done(summary, latency, _)
  local errors = summary.errors
  io.write(string.format(
    'WRK {"replies": %d, "duration_us": %d, "p50_us": %.1f, "p99_us": %.1f, "max_us": %.1f, '
      .. '"status": %d, "connect": %d, "read": %d, "write": %d, "timeout": %d}\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99), latency.max,
    errors.status, errors.connect, errors.read, errors.write, errors.timeout))
end
