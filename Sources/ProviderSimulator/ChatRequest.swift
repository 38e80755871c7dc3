/// What the simulator needs to know of a Chat Completions or Messages request, read in one pass.
///
/// Both providers' members are accepted side by side; which of them are required is decided by the
/// endpoint. Ranges point into the request's body.
struct ChatRequest {
  /// What the request says about calling tools.
  enum ToolChoice: Equatable {
    case free
    case none
    case any
    case named(String)
  }

  /// Texts kept besides the question; earlier ones beyond it are ignored.
  static let mostContextTexts = 16

  var model: String?
  var stream = false
  /// Whether the request says if it is to be streamed.
  var saysStream = false
  var includeUsage = false
  /// Whether chunks are padded (`stream_options.include_obfuscation`).
  var obfuscates = true
  var maxTokens: Int?
  var choiceCount = 1
  var toolNames: [String] = []
  var toolChoice = ToolChoice.free
  var thinks = false
  /// Whether Gemini shows its thoughts.
  var showsThoughts = false
  var wantsJSON = false
  var hasMessages = false
  /// Whether the answer is to be a job (the Responses API).
  var isBackground = false
  /// Whether the conversation ends with a tool's result, so that a call was answered.
  var endsWithToolResult = false
  var logprobs = false
  /// A message has the role `developer`.
  var hasDeveloper = false
  /// The first sampling parameter that the request carries.
  var samplingParameter: String?
  /// The last text of the last user message.
  var question: Range<Int>?
  /// Other texts (system, earlier messages, earlier parts), in order.
  var context: [Range<Int>] = []

  init() {}

  /// Reads a request.
  init(_ body: UnsafeRawBufferPointer) throws(JSONScanner.Malformed) {
    var scanner = JSONScanner(body)
    try scanner.object { (scanner, key) throws(JSONScanner.Malformed) in
      try readMember(key, &scanner)
    }
    try scanner.finish()
  }

  private mutating func readMember(
    _ key: Range<Int>, _ scanner: inout JSONScanner
  ) throws(JSONScanner.Malformed) {
    switch scanner.text(key) {
    case "model": model = try scanner.stringIfAny().map { scanner.text($0) }
    case "stream":
      stream = try scanner.isTrue()
      saysStream = true
    case "prompt", "inputs": question = try scanner.stringIfAny()
    case "options", "parameters": try readLimits(&scanner)
    case "think":
      thinks = scanner.peek() != UInt8(ascii: "f") && scanner.peek() != UInt8(ascii: "n")
      try scanner.skip()
    case "format":
      wantsJSON = scanner.peek() == UInt8(ascii: "{") || scanner.peek() == UInt8(ascii: "\"")
      try scanner.skip()
    case "messages": try readMessages(&scanner)
    case "logprobs":
      logprobs =
        try scanner.peek() == UInt8(ascii: "t") ? scanner.isTrue() : scanner.integer() ?? 0 > 0
    case "system":
      try readContent(&scanner) { request, text in request.addContext(text) }
    case "input":
      hasMessages = true
      try readInput(&scanner)
    case "instructions": try readContent(&scanner) { request, text in request.addContext(text) }
    case "background": isBackground = try scanner.isTrue()
    case "version": model = try scanner.stringIfAny().map { scanner.text($0) }
    case "max_output_tokens": maxTokens = try scanner.integer() ?? maxTokens
    case "max_tokens", "max_completion_tokens": maxTokens = try scanner.integer() ?? maxTokens
    case "stream_options": try readStreamOptions(&scanner)
    case "tools": try readTools(&scanner)
    case "tool_choice": try readToolChoice(&scanner)
    case "n": choiceCount = try scanner.integer() ?? 1
    case "thinking":
      thinks = try Self.typeMember(&scanner).map { $0 != "disabled" } ?? false
    case "response_format":
      wantsJSON = try Self.typeMember(&scanner)?.hasPrefix("json") ?? false
    case "temperature": try noteSampling("temperature", &scanner)
    case "top_p": try noteSampling("top_p", &scanner)
    case "top_k": try noteSampling("top_k", &scanner)
    default: try scanner.skip()
    }
  }

  /// Ollama's options and Text Generation Inference's parameters.
  private mutating func readLimits(
    _ scanner: inout JSONScanner
  ) throws(JSONScanner.Malformed) {
    guard scanner.peek() == UInt8(ascii: "{") else { return try scanner.skip() }
    try scanner.object { (scanner, key) throws(JSONScanner.Malformed) in
      if scanner.equals(key, "num_predict") || scanner.equals(key, "max_new_tokens") {
        maxTokens = try scanner.integer()
      } else {
        try scanner.skip()
      }
    }
  }

  private mutating func noteSampling(
    _ name: String, _ scanner: inout JSONScanner
  ) throws(JSONScanner.Malformed) {
    if scanner.peek() != UInt8(ascii: "n"), samplingParameter == nil { samplingParameter = name }
    try scanner.skip()
  }

  mutating func addContext(_ text: Range<Int>) {
    if text.isEmpty { return }
    if context.count == Self.mostContextTexts { context.removeFirst() }
    context.append(text)
  }
}

extension ChatRequest {
  /// A text or items (the Responses API), or the inputs of a model (Replicate).
  private mutating func readInput(_ scanner: inout JSONScanner) throws(JSONScanner.Malformed) {
    switch scanner.peek() {
    case UInt8(ascii: "["): try readMessages(&scanner)
    case UInt8(ascii: "{"):
      try scanner.object { (scanner, key) throws(JSONScanner.Malformed) in
        switch scanner.text(key) {
        case "prompt", "text": question = try scanner.stringIfAny() ?? question
        case "system_prompt": if let text = try scanner.stringIfAny() { addContext(text) }
        case "max_tokens": maxTokens = try scanner.integer() ?? maxTokens
        default: try scanner.skip()
        }
      }
    default: question = try scanner.stringIfAny() ?? question
    }
  }

  private mutating func readMessages(
    _ scanner: inout JSONScanner
  ) throws(JSONScanner.Malformed) {
    guard scanner.peek() == UInt8(ascii: "[") else { return try scanner.skip() }
    try scanner.array { (scanner) throws(JSONScanner.Malformed) in
      hasMessages = true
      endsWithToolResult = false
      guard scanner.peek() == UInt8(ascii: "{") else { return try scanner.skip() }
      var isUser = false
      var texts: [Range<Int>] = []
      try scanner.object { (scanner, key) throws(JSONScanner.Malformed) in
        if scanner.equals(key, "role"), let role = try scanner.stringIfAny() {
          isUser = scanner.equals(role, "user")
          if scanner.equals(role, "tool") { endsWithToolResult = true }
          if scanner.equals(role, "developer") { hasDeveloper = true }
        } else if scanner.equals(key, "content") {
          try readContent(&scanner) { _, text in texts.append(text) }
        } else if scanner.equals(key, "type"), let type = try scanner.stringIfAny() {
          // An item of the Responses API.
          if scanner.text(type).hasSuffix("_call_output") { endsWithToolResult = true }
        } else if !scanner.equals(key, "role"), !scanner.equals(key, "type") {
          try scanner.skip()
        }
      }
      if isUser, let last = texts.last {
        if let question { addContext(question) }
        for text in texts.dropLast() { addContext(text) }
        question = last
      } else {
        for text in texts { addContext(text) }
      }
    }
  }

  /// Reads a string, or an array of parts, and hands out each text.
  private mutating func readContent(
    _ scanner: inout JSONScanner, _ found: (inout ChatRequest, Range<Int>) -> Void
  ) throws(JSONScanner.Malformed) {
    switch scanner.peek() {
    case UInt8(ascii: "\""): found(&self, try scanner.string())
    case UInt8(ascii: "["):
      try scanner.array { (scanner) throws(JSONScanner.Malformed) in
        guard scanner.peek() == UInt8(ascii: "{") else { return try scanner.skip() }
        try scanner.object { (scanner, key) throws(JSONScanner.Malformed) in
          if scanner.equals(key, "text"), let text = try scanner.stringIfAny() {
            found(&self, text)
          } else if scanner.equals(key, "type"), let type = try scanner.stringIfAny() {
            if scanner.equals(type, "tool_result") { endsWithToolResult = true }
          } else if !scanner.equals(key, "text"), !scanner.equals(key, "type") {
            try scanner.skip()
          }
        }
      }
    default: try scanner.skip()
    }
  }

  private mutating func readStreamOptions(
    _ scanner: inout JSONScanner
  ) throws(JSONScanner.Malformed) {
    guard scanner.peek() == UInt8(ascii: "{") else { return try scanner.skip() }
    try scanner.object { (scanner, key) throws(JSONScanner.Malformed) in
      if scanner.equals(key, "include_usage") {
        includeUsage = try scanner.isTrue()
      } else if scanner.equals(key, "include_obfuscation") {
        obfuscates = try scanner.isTrue()
      } else {
        try scanner.skip()
      }
    }
  }

  /// OpenAI nests the name in `function`, Anthropic does not.
  private mutating func readTools(_ scanner: inout JSONScanner) throws(JSONScanner.Malformed) {
    guard scanner.peek() == UInt8(ascii: "[") else { return try scanner.skip() }
    try scanner.array { (scanner) throws(JSONScanner.Malformed) in
      if let name = try Self.toolName(&scanner) { toolNames.append(name) }
    }
  }

  private mutating func readToolChoice(
    _ scanner: inout JSONScanner
  ) throws(JSONScanner.Malformed) {
    if scanner.peek() == UInt8(ascii: "{") {
      var lookahead = scanner
      let type = try Self.typeMember(&lookahead)
      let name = try Self.toolName(&scanner)
      switch type {
      case "none": toolChoice = ToolChoice.none
      case "any": toolChoice = .any
      default: toolChoice = name.map { .named($0) } ?? .free
      }
    } else if let word = try scanner.stringIfAny() {
      if scanner.equals(word, "none") { toolChoice = ToolChoice.none }
      if scanner.equals(word, "required") { toolChoice = .any }
    }
  }

  static func toolName(
    _ scanner: inout JSONScanner
  ) throws(JSONScanner.Malformed) -> String? {
    guard scanner.peek() == UInt8(ascii: "{") else {
      try scanner.skip()
      return nil
    }
    var name: String?
    try scanner.object { (scanner, key) throws(JSONScanner.Malformed) in
      if scanner.equals(key, "name") {
        name = try scanner.stringIfAny().map { scanner.text($0) }
      } else if scanner.equals(key, "function") {
        name = try toolName(&scanner)
      } else {
        try scanner.skip()
      }
    }
    return name
  }

  private static func typeMember(
    _ scanner: inout JSONScanner
  ) throws(JSONScanner.Malformed) -> String? {
    guard scanner.peek() == UInt8(ascii: "{") else {
      try scanner.skip()
      return nil
    }
    var type: String?
    try scanner.object { (scanner, key) throws(JSONScanner.Malformed) in
      if scanner.equals(key, "type") {
        type = try scanner.stringIfAny().map { scanner.text($0) }
      } else {
        try scanner.skip()
      }
    }
    return type
  }
}
