import Providers

extension Settlement {
  /// Writes the element of `p_results` that docs/worker-protocol.md describes; absent members are null.
  func write(to json: inout JSONBuffer) {
    json.beginObject()
    json.member("id", uuidOf: fence)
    json.member("attempt", fence.attempt)
    json.member("outcome", outcome.rawValue)
    if !tail.isEmpty { json.member("tail", tail) }
    if let reply { write(reply, to: &json) }
    if let failure { write(failure, to: &json) }
    json.member("http_status", failure?.httpStatus ?? httpStatus)
    json.member("request_id", reply?.requestID ?? failure?.requestID)
    json.member("sent", sent)
    json.member("ttft_ms", milliseconds: firstText)
    json.member("latency_ms", milliseconds: latency)
    if !artifacts.isEmpty { json.member("files", texts: artifacts) }
    if let sealed { write(sealed, to: &json) }
    let dropped = dropped.isEmpty ? failure?.parameters ?? reply?.dropped ?? [] : dropped
    if !dropped.isEmpty { json.member("dropped", texts: dropped) }
    json.endObject()
  }

  private func write(_ sealed: SealedCall, to json: inout JSONBuffer) {
    json.key("sealed")
    json.beginObject()
    json.member("key", sealed.key)
    json.member("facts", base64: sealed.facts)
    json.member("request", base64: sealed.request)
    json.member("response", base64: sealed.response)
    json.endObject()
  }

  private func write(_ reply: Reply, to json: inout JSONBuffer) {
    json.member("output", reply.output)
    json.member("message", json: reply.message.map(JSONRepair.repaired))
    json.member("embedding", vector: reply.embedding)
    json.member("embeddings", vectors: reply.embeddings)
    json.member("finish_reason", reply.finishReason)
    if let usage = reply.usage {
      json.key("usage")
      json.beginObject()
      json.member("input", usage.countsTokens ? usage.input : nil)
      json.member("cache_read", usage.cacheRead)
      json.member("cache_write", usage.cacheWrite)
      json.member("cache_write_1h", usage.cacheWrite1h)
      json.member("output", usage.countsTokens ? usage.output : nil)
      json.member("reasoning", usage.reasoning)
      if !usage.units.isEmpty {
        json.key("units")
        json.beginObject()
        for (name, amount) in usage.units.sorted(by: { $0.key < $1.key }) {
          json.member(text: name, amount)
        }
        json.endObject()
      }
      json.endObject()
    }
    json.member("model", reply.model)
    json.member("service_tier", reply.serviceTier)
  }

  private func write(_ failure: Failure, to json: inout JSONBuffer) {
    json.member("signal", failure.signal.rawValue)
    json.member("error_type", failure.type)
    json.member("error_code", failure.code)
    json.member("error_message", failure.message)
    json.member("retry_after_ms", failure.retryAfterMilliseconds)
    json.member("should_retry", failure.shouldRetry)
  }
}

extension Gathering.Delta {
  func write(to json: inout JSONBuffer) {
    json.beginObject()
    json.member("id", uuidOf: fence)
    json.member("attempt", fence.attempt)
    json.member("part", part)
    json.member("text", text)
    json.endObject()
  }
}
