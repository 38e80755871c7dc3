/// Gemini's `usageMetadata`, which repeats in a stream and grows: the last one counts. Cached tokens are
/// inside of the prompt's; what tools read at the provider and the model's thoughts are counted beside
/// prompt and candidates. A count of zero is left out.
struct GeminiUsage: Sendable {
  private var prompt: Int?
  private var cached = 0
  private var toolUse = 0
  private var candidates: Int?
  private var thoughts: Int?
  private var units: [String: String] = [:]
  private(set) var serviceTier: String?

  mutating func read(_ json: JSON) {
    prompt = count(json["promptTokenCount"]) ?? prompt
    cached = count(json["cachedContentTokenCount"]) ?? cached
    toolUse = count(json["toolUsePromptTokenCount"]) ?? toolUse
    candidates = count(json["candidatesTokenCount"]) ?? candidates
    thoughts = count(json["thoughtsTokenCount"]) ?? thoughts
    readModalities(json["promptTokensDetails"], "input")
    readModalities(json["cacheTokensDetails"], "cache_read")
    readModalities(json["candidatesTokensDetails"], "output")
    if let tier = json["serviceTier"]?.string, tier != "unspecified" {
      serviceTier = tier.lowercased()
    }
    switch json["trafficType"]?.string {
    case "ON_DEMAND_PRIORITY": serviceTier = "priority"
    case "ON_DEMAND_FLEX": serviceTier = "flex"
    default: break
    }
  }

  /// Totals that include their parts; nil while the prompt is not counted. `isFinished`: the provider
  /// has said why it stopped, so that what it left out is zero.
  func total(isFinished: Bool) -> Usage? {
    guard let prompt else { return nil }
    var usage = Usage()
    usage.input = prompt + toolUse
    usage.cacheRead = min(cached, usage.input)
    usage.reasoning = thoughts ?? 0
    usage.output = (candidates ?? 0) + usage.reasoning
    if !isFinished && candidates == nil && thoughts == nil {
      usage.output = nil
      usage.reasoning = 0
    }
    usage.units = units
    return Usage.isCount(usage.input) && Usage.isCount(usage.output ?? 0) ? usage : nil
  }

  /// Sound and pictures may have prices of their own (docs/prices.md).
  private mutating func readModalities(_ json: JSON?, _ side: String) {
    for detail in json?.elements ?? [] {
      guard let tokens = count(detail["tokenCount"]), tokens > 0 else { continue }
      switch detail["modality"]?.string {
      case "AUDIO": units["audio_\(side)"] = String(tokens)
      case "IMAGE": units["image_\(side)"] = String(tokens)
      case "VIDEO": units["video_\(side)"] = String(tokens)
      default: break
      }
    }
  }

  private func count(_ json: JSON?) -> Int? {
    guard let value = json?.int, Usage.isCount(value) else { return nil }
    return value
  }
}
