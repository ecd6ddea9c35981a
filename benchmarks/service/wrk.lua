-- Requests from a file, four lines each (method, path, tag, body), in turn; what was measured as one line of JSON.

local requests, at = {}, 0

function init(arguments)
   local headers = {Authorization = "Bearer " .. arguments[2]}
   local lines = {}
   for line in io.lines(arguments[1]) do lines[#lines + 1] = line end
   for first = 1, #lines, 4 do
      local method, path, tag, body = unpack(lines, first, first + 3)
      headers["If-None-Match"] = tag ~= "" and tag or nil
      headers["Content-Type"] = body ~= "" and "application/json" or nil
      requests[#requests + 1] = wrk.format(method, path, headers, body ~= "" and body or nil)
   end
end

function request()
   at = at % #requests + 1
   return requests[at]
end

function done(summary, latency)
   local e = summary.errors
   io.write(string.format(
      '{"requests": %d, "rate": %.1f, "p50": %.3f, "p99": %.3f, "longest": %.3f, "errors": %d}\n',
      summary.requests, summary.requests / (summary.duration / 1e6), latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
      latency.max / 1e3, e.connect + e.read + e.write + e.status + e.timeout))
end
