extension ChatRequest {
  /// Reads a request of `generateContent` or `countTokens`; the model stands in the path. Gemini's own
  /// spelling of members may be in camel case or snake case; the SDK writes the first.
  init(gemini body: UnsafeRawBufferPointer) throws(JSONScanner.Malformed) {
    self.init()
    var scanner = JSONScanner(body)
    try scanner.object { (scanner, key) throws(JSONScanner.Malformed) in
      switch scanner.text(key) {
      case "contents": try readContents(&scanner)
      case "systemInstruction", "system_instruction":
        for text in try Self.geminiTurn(&scanner).texts { addContext(text) }
      case "generationConfig", "generation_config": try readConfig(&scanner)
      case "tools": try readGeminiTools(&scanner)
      case "toolConfig", "tool_config": try readToolConfig(&scanner)
      // What the SDK wraps for countTokens.
      case "generateContentRequest": try scanner.skip()
      default: try scanner.skip()
      }
    }
    try scanner.finish()
  }

  private struct Turn {
    var isUser = true
    var texts: [Range<Int>] = []
    var hasResult = false
  }

  private mutating func readContents(
    _ scanner: inout JSONScanner
  ) throws(JSONScanner.Malformed) {
    guard scanner.peek() == UInt8(ascii: "[") else { return try scanner.skip() }
    try scanner.array { (scanner) throws(JSONScanner.Malformed) in
      let turn = try Self.geminiTurn(&scanner)
      hasMessages = true
      endsWithToolResult = turn.hasResult
      if turn.isUser, let last = turn.texts.last {
        if let question { addContext(question) }
        for text in turn.texts.dropLast() { addContext(text) }
        question = last
      } else {
        for text in turn.texts { addContext(text) }
      }
    }
  }

  private static func geminiTurn(
    _ scanner: inout JSONScanner
  ) throws(JSONScanner.Malformed) -> Turn {
    var turn = Turn()
    guard scanner.peek() == UInt8(ascii: "{") else {
      try scanner.skip()
      return turn
    }
    try scanner.object { (scanner, key) throws(JSONScanner.Malformed) in
      if scanner.equals(key, "role"), let role = try scanner.stringIfAny() {
        turn.isUser = scanner.equals(role, "user")
      } else if scanner.equals(key, "parts"), scanner.peek() == UInt8(ascii: "[") {
        try scanner.array { (scanner) throws(JSONScanner.Malformed) in
          try readPart(&turn, &scanner)
        }
      } else if !scanner.equals(key, "role") {
        try scanner.skip()
      }
    }
    return turn
  }

  private static func readPart(
    _ turn: inout Turn, _ scanner: inout JSONScanner
  ) throws(JSONScanner.Malformed) {
    guard scanner.peek() == UInt8(ascii: "{") else { return try scanner.skip() }
    try scanner.object { (scanner, key) throws(JSONScanner.Malformed) in
      if scanner.equals(key, "text"), let text = try scanner.stringIfAny() {
        turn.texts.append(text)
      } else if scanner.equals(key, "functionResponse") {
        turn.hasResult = true
        try scanner.skip()
      } else if !scanner.equals(key, "text") {
        try scanner.skip()
      }
    }
  }

  private mutating func readConfig(_ scanner: inout JSONScanner) throws(JSONScanner.Malformed) {
    guard scanner.peek() == UInt8(ascii: "{") else { return try scanner.skip() }
    try scanner.object { (scanner, key) throws(JSONScanner.Malformed) in
      switch scanner.text(key) {
      case "maxOutputTokens": maxTokens = try scanner.integer()
      case "candidateCount": choiceCount = try scanner.integer() ?? 1
      case "responseMimeType":
        wantsJSON =
          try scanner.stringIfAny().map { scanner.equals($0, "application/json") } ?? false
      case "thinkingConfig": try readThinking(&scanner)
      default: try scanner.skip()
      }
    }
  }

  private mutating func readThinking(
    _ scanner: inout JSONScanner
  ) throws(JSONScanner.Malformed) {
    guard scanner.peek() == UInt8(ascii: "{") else { return try scanner.skip() }
    var budget: Int?
    try scanner.object { (scanner, key) throws(JSONScanner.Malformed) in
      switch scanner.text(key) {
      case "thinkingBudget", "thinking_budget": budget = try scanner.integer()
      case "includeThoughts", "include_thoughts": showsThoughts = try scanner.isTrue()
      default: try scanner.skip()
      }
    }
    thinks = budget != 0
  }

  private mutating func readGeminiTools(
    _ scanner: inout JSONScanner
  ) throws(JSONScanner.Malformed) {
    guard scanner.peek() == UInt8(ascii: "[") else { return try scanner.skip() }
    try scanner.array { (scanner) throws(JSONScanner.Malformed) in
      guard scanner.peek() == UInt8(ascii: "{") else { return try scanner.skip() }
      try scanner.object { (scanner, key) throws(JSONScanner.Malformed) in
        guard scanner.equals(key, "functionDeclarations"), scanner.peek() == UInt8(ascii: "[")
        else { return try scanner.skip() }
        try scanner.array { (scanner) throws(JSONScanner.Malformed) in
          if let name = try Self.toolName(&scanner) { toolNames.append(name) }
        }
      }
    }
  }

  private mutating func readToolConfig(
    _ scanner: inout JSONScanner
  ) throws(JSONScanner.Malformed) {
    guard scanner.peek() == UInt8(ascii: "{") else { return try scanner.skip() }
    try scanner.object { (scanner, key) throws(JSONScanner.Malformed) in
      guard scanner.equals(key, "functionCallingConfig"), scanner.peek() == UInt8(ascii: "{")
      else { return try scanner.skip() }
      var mode = ""
      var names: [String] = []
      try scanner.object { (scanner, key) throws(JSONScanner.Malformed) in
        if scanner.equals(key, "mode") {
          mode = try scanner.stringIfAny().map { scanner.text($0) } ?? ""
        } else if scanner.equals(key, "allowedFunctionNames"),
          scanner.peek() == UInt8(ascii: "[")
        {
          try scanner.array { (scanner) throws(JSONScanner.Malformed) in
            if let name = try scanner.stringIfAny() { names.append(scanner.text(name)) }
          }
        } else {
          try scanner.skip()
        }
      }
      switch mode {
      case "NONE": toolChoice = ToolChoice.none
      case "ANY": toolChoice = names.first.map { .named($0) } ?? .any
      default: break
      }
    }
  }
}

extension EmbeddingRequest {
  /// Reads a request of `embedContent` or `batchEmbedContents`.
  init(gemini body: UnsafeRawBufferPointer) throws(JSONScanner.Malformed) {
    self.init()
    var scanner = JSONScanner(body)
    try scanner.object { (scanner, key) throws(JSONScanner.Malformed) in
      if scanner.equals(key, "requests"), scanner.peek() == UInt8(ascii: "[") {
        try scanner.array { (scanner) throws(JSONScanner.Malformed) in
          guard scanner.peek() == UInt8(ascii: "{") else { return try scanner.skip() }
          try scanner.object { (scanner, key) throws(JSONScanner.Malformed) in
            try readGemini(key, &scanner)
          }
        }
      } else {
        try readGemini(key, &scanner)
      }
    }
    try scanner.finish()
  }

  private mutating func readGemini(
    _ key: Range<Int>, _ scanner: inout JSONScanner
  ) throws(JSONScanner.Malformed) {
    switch scanner.text(key) {
    case "content":
      hasInput = true
      var text = ""
      guard scanner.peek() == UInt8(ascii: "{") else { return try scanner.skip() }
      try scanner.object { (scanner, key) throws(JSONScanner.Malformed) in
        guard scanner.equals(key, "parts"), scanner.peek() == UInt8(ascii: "[") else {
          return try scanner.skip()
        }
        try scanner.array { (scanner) throws(JSONScanner.Malformed) in
          guard scanner.peek() == UInt8(ascii: "{") else { return try scanner.skip() }
          try scanner.object { (scanner, key) throws(JSONScanner.Malformed) in
            if scanner.equals(key, "text"), let range = try scanner.stringIfAny() {
              text += scanner.text(range)
            } else if !scanner.equals(key, "text") {
              try scanner.skip()
            }
          }
        }
      }
      guard inputs.count <= Self.mostInputs else { return }
      inputs.append(text)
      tokenCount += TokenEstimate.tokens(bytes: text.utf8.count)
    case "outputDimensionality": dimensions = try scanner.integer()
    default: try scanner.skip()
    }
  }
}
