import NIOHTTP1

/// What a server of open models is asked for: Ollama, Text Generation Inference, Text Embeddings
/// Inference, or Hugging Face's router. The first part of the path names the server, since they share
/// paths (`/info`); below it paths are the servers' own.
struct ModelServer: Equatable {
  enum Task: Equatable {
    case chat
    /// A completion; nil: the request says whether it is to be streamed.
    case generate(stream: Bool?)
    case embed
    case rerank
    case classify
    /// Hugging Face's tasks without a name in the path: by the request, a classification or a completion.
    case unnamed
    case list
    case info
  }

  var wire: Wire
  var task: Task
  /// From the path; nil where the request names it, or nothing does.
  var model: String?
  /// As the log names it, without the model.
  var path: String

  /// nil for paths that none of them has.
  init?(_ method: HTTPMethod, _ path: Substring) {
    let parts = path.split(separator: "/", maxSplits: 1)
    guard parts.count == 2 else { return nil }
    let found: (wire: Wire, task: Task)?
    switch (method, parts[0], parts[1]) {
    case (.POST, "ollama", "api/chat"): found = (.ollama, .chat)
    case (.POST, "ollama", "api/generate"): found = (.ollama, .generate(stream: nil))
    case (.POST, "ollama", "api/embed"): found = (.ollama, .embed)
    case (.GET, "ollama", "api/tags"): found = (.ollama, .list)
    case (.POST, "tgi", "generate"): found = (.tgi, .generate(stream: false))
    case (.POST, "tgi", "generate_stream"): found = (.tgi, .generate(stream: true))
    case (.GET, "tgi", "info"): found = (.tgi, .info)
    case (.POST, "tei", "embed"): found = (.tei, .embed)
    case (.POST, "tei", "rerank"): found = (.tei, .rerank)
    case (.POST, "tei", "predict"): found = (.tei, .classify)
    case (.GET, "tei", "info"): found = (.tei, .info)
    default: found = nil
    }
    if let found {
      self.init(wire: found.wire, task: found.task, path: String(path))
    } else if method == .POST, parts[0] == "huggingface" {
      self.init(huggingFace: parts[1])
    } else {
      return nil
    }
  }

  private init(wire: Wire, task: Task, model: String? = nil, path: String) {
    self.wire = wire
    self.task = task
    self.model = model
    self.path = path
  }

  /// `hf-inference/models/{model}[/pipeline/{task}]`, or `dedicated/{task}` for an endpoint of one model.
  private init?(huggingFace path: Substring) {
    let routed = "hf-inference/models/"
    let dedicated = "dedicated/"
    var name = path
    var pipeline: Substring?
    if path.hasPrefix(routed) {
      name = path.dropFirst(routed.count)
      let parts = name.split(separator: "/", omittingEmptySubsequences: false)
      if parts.count > 2, parts[parts.count - 2] == "pipeline", let last = parts.last {
        pipeline = last
        name = name.dropLast("/pipeline/".count + last.count)
      }
    } else if path.hasPrefix(dedicated) {
      pipeline = path.dropFirst(dedicated.count)
      name = "sim-dedicated"
    } else {
      return nil
    }
    let task: Task
    switch pipeline {
    case "feature-extraction": task = .embed
    case "sentence-similarity": task = .rerank
    case "text-classification", "zero-shot-classification": task = .classify
    case nil, "text-generation": task = .unnamed
    default: return nil
    }
    self.init(
      wire: .huggingFace, task: task, model: Self.decoded(name),
      path: "/huggingface/" + (pipeline ?? "model"))
  }

  private static func decoded(_ text: Substring) -> String {
    var bytes: [UInt8] = []
    var rest = text.utf8[...]
    while let byte = rest.popFirst() {
      let digits = rest.prefix(2)
      if byte == UInt8(ascii: "%"), digits.count == 2, let high = digits.first?.hexDigit,
        let low = digits.last?.hexDigit
      {
        bytes.append(high << 4 | low)
        rest = rest.dropFirst(2)
      } else {
        bytes.append(byte)
      }
    }
    return String(decoding: bytes, as: UTF8.self)
  }
}

extension Wire {
  /// Whether this is one of the servers of open models.
  var isModelServer: Bool {
    switch self {
    case .ollama, .tgi, .tei, .huggingFace: true
    default: false
    }
  }

  /// The content type of streams.
  var streamType: StaticString {
    self == .ollama ? "application/x-ndjson" : "text/event-stream; charset=utf-8"
  }
}
