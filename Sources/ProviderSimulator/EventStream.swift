import NIOCore

/// The events of a streamed answer, one at a time, so that an answer of any length needs the
/// memory of one event.
struct EventStream {
  /// What kind of event was appended; tokens are what pacing and early ends count.
  enum Event: Equatable {
    case opening
    case tokens(Int)
    case closing
    case end
  }

  private enum Phase {
    case start
    case thinking
    case openText
    case text
    case openTool(Int)
    case toolArguments(Int)
    case finish
    case usage
    case terminal
    case over
  }

  /// Events that were written beforehand, of protocols that number them.
  enum Form { case responses, replicate }

  let wire: Wire
  let answer: Answer
  private(set) var form: Form?
  private var prepared: ArraySlice<(Event, String)> = []
  private var phase = Phase.start
  private var offset = 0
  private var choice = 0
  /// Index of Anthropic's current content block, or of the last token.
  private var block = 0

  init(wire: Wire, answer: Answer) {
    self.wire = wire
    self.answer = answer
  }

  init(prepared events: [(Event, String)], of answer: Answer, _ form: Form) {
    self.init(wire: form == .replicate ? .replicate : .openAI, answer: answer)
    self.form = form
    prepared = events[...]
  }

  /// Whether the next event is the one that completes the answer for the client, usage included.
  var isComplete: Bool {
    if case .over = phase { true } else { false }
  }

  /// Appends the next event to `buffer`.
  mutating func next(into buffer: inout ByteBuffer) -> Event {
    if form != nil {
      guard let (event, text) = prepared.popFirst() else { return .end }
      buffer.writeString(text)
      return event
    }
    switch wire {
    case .replicate: return .end
    case .openAI: return nextOpenAI(into: &buffer)
    case .anthropic: return nextAnthropic(into: &buffer)
    case .gemini: return nextGemini(into: &buffer)
    case .ollama: return nextOllama(into: &buffer)
    case .tgi, .tei, .huggingFace: return nextTextGeneration(into: &buffer)
    }
  }
}

// MARK: - OpenAI

extension EventStream {
  private mutating func nextOpenAI(into buffer: inout ByteBuffer) -> Event {
    switch phase {
    case .start where answer.host == .azure && choice == 0 && offset == 0:
      OpenAIWire.promptFilter(answer, into: &buffer)
      offset = -1
      return .opening
    case .start where answer.isCompletion:
      offset = 0
      phase = answer.text.count > 0 ? .text : .finish
      return nextOpenAI(into: &buffer)
    case .thinking:
      OpenAIWire.chunk(answer, choice: choice, into: &buffer) {
        OpenAIWire.reasoning(answer, into: &$0)
      }
      phase = answer.text.count > 0 ? .text : afterText
      return .opening
    case .start, .openText:
      if choice == 0 { OpenAIWire.comment(answer, into: &buffer) }
      let hasText = answer.toolCalls.isEmpty || answer.text.count > 0
      OpenAIWire.chunk(answer, choice: choice, into: &buffer) {
        $0.writeStaticString(
          hasText
            ? "\"role\":\"assistant\",\"content\":\"\",\"refusal\":null"
            : "\"role\":\"assistant\",\"content\":null")
      }
      offset = 0
      phase = answer.text.count > 0 ? .text : afterText
      if answer.host.reasoningMember != nil, !answer.thinking.isEmpty { phase = .thinking }
      return .opening
    case .text: return textDelta(into: &buffer)
    case .openTool(let index):
      OpenAIWire.chunk(answer, choice: choice, into: &buffer) {
        OpenAIWire.toolCallStart(answer.toolCalls[index], index: index, into: &$0)
      }
      offset = 0
      phase = .toolArguments(index)
      return .opening
    case .toolArguments(let index): return argumentsDelta(index, into: &buffer)
    case .finish:
      OpenAIWire.chunk(answer, choice: choice, finish: true, into: &buffer) {
        if answer.isCompletion { $0.writeStaticString("\"text\":\"\"") }
      }
      choice += 1
      phase = choice < answer.choiceCount ? .start : answer.includeUsage ? .usage : .terminal
      return .closing
    case .usage:
      OpenAIWire.usageChunk(answer, into: &buffer)
      phase = .terminal
      return .closing
    case .terminal:
      OpenAIWire.done(into: &buffer)
      phase = .over
      return .closing
    case .over: return .end
    }
  }
}

// MARK: - Anthropic

extension EventStream {
  private mutating func nextAnthropic(into buffer: inout ByteBuffer) -> Event {
    switch phase {
    case .start:
      AnthropicWire.messageStart(answer, into: &buffer)
      phase = answer.thinking.isEmpty ? afterThinking : .thinking
      return .opening
    case .thinking:
      writeThinking(into: &buffer)
      phase = afterThinking
      return .opening
    case .openText:
      AnthropicWire.blockStart(index: block, into: &buffer) {
        $0.writeStaticString("{\"type\":\"text\",\"text\":\"\"}")
      }
      AnthropicWire.ping(into: &buffer)
      offset = 0
      phase = .text
      return .opening
    case .text: return textDelta(into: &buffer)
    case .openTool(let index):
      AnthropicWire.blockStart(index: block, into: &buffer) {
        AnthropicWire.toolBlock(answer.toolCalls[index], into: &$0)
      }
      AnthropicWire.blockDelta(index: block, into: &buffer) {
        $0.writeStaticString("\"type\":\"input_json_delta\",\"partial_json\":\"\"")
      }
      offset = 0
      phase = .toolArguments(index)
      return .opening
    case .toolArguments(let index): return argumentsDelta(index, into: &buffer)
    case .finish, .usage:
      AnthropicWire.messageDelta(answer, into: &buffer)
      phase = .terminal
      return .closing
    case .terminal:
      AnthropicWire.messageStop(into: &buffer)
      phase = .over
      return .closing
    case .over: return .end
    }
  }

  private var afterThinking: Phase {
    AnthropicWire.hasText(answer) ? .openText : afterText
  }

  private mutating func writeThinking(into buffer: inout ByteBuffer) {
    AnthropicWire.blockStart(index: block, into: &buffer) {
      $0.writeStaticString("{\"type\":\"thinking\",\"thinking\":\"\",\"signature\":\"\"}")
    }
    AnthropicWire.blockDelta(index: block, into: &buffer) {
      $0.writeStaticString("\"type\":\"thinking_delta\",\"thinking\":\"")
      $0.writeBytes(answer.thinking)
      $0.writeStaticString("\"")
    }
    AnthropicWire.blockDelta(index: block, into: &buffer) {
      $0.writeStaticString("\"type\":\"signature_delta\",\"signature\":\"c2ltdWxhdG9y\"")
    }
    endBlock(into: &buffer)
  }

  private mutating func endBlock(into buffer: inout ByteBuffer) {
    AnthropicWire.blockStop(index: block, into: &buffer)
    block += 1
  }
}

// MARK: - Gemini

extension EventStream {
  /// Nothing opens a stream or a part of it, and nothing marks its end; the opening event is empty,
  /// and there for the time before the first token.
  private mutating func nextGemini(into buffer: inout ByteBuffer) -> Event {
    switch phase {
    case .start, .thinking, .openText:
      phase = GeminiWire.hasText(answer) && answer.text.count > 0 ? .text : afterText
      if GeminiWire.isBlocked(answer) { phase = .finish }
      if !answer.thinking.isEmpty { GeminiWire.thoughtChunk(answer, into: &buffer) }
      return .opening
    case .text: return textDelta(into: &buffer)
    case .openTool(let index), .toolArguments(let index):
      GeminiWire.callChunk(answer, index, into: &buffer)
      phase = index + 1 < answer.toolCalls.count ? .openTool(index + 1) : .finish
      return .tokens(1)
    case .finish, .usage:
      GeminiWire.lastChunk(answer, into: &buffer)
      phase = .over
      return .closing
    case .terminal, .over: return .end
    }
  }
}

// MARK: - Servers of open models

extension EventStream {
  /// Nothing opens a stream; the opening event is empty, and there for the time before the first token.
  private mutating func nextOllama(into buffer: inout ByteBuffer) -> Event {
    switch phase {
    case .start, .thinking, .openText:
      phase = answer.text.count > 0 ? .text : afterText
      if !answer.thinking.isEmpty { OllamaWire.thoughtLine(answer, into: &buffer) }
      return .opening
    case .text: return textDelta(into: &buffer)
    case .openTool(let index), .toolArguments(let index):
      OllamaWire.callLine(answer, index, into: &buffer)
      phase = index + 1 < answer.toolCalls.count ? .openTool(index + 1) : .finish
      return .tokens(1)
    case .finish, .usage, .terminal:
      OllamaWire.lastLine(answer, into: &buffer)
      phase = .over
      return .closing
    case .over: return .end
    }
  }

  private mutating func nextTextGeneration(into buffer: inout ByteBuffer) -> Event {
    switch phase {
    case .start, .thinking, .openText:
      phase = answer.text.count > 0 ? .text : .finish
      return .opening
    case .text: return textDelta(into: &buffer)
    case .over: return .end
    default:
      TextGenerationWire.lastEvent(answer, index: block + 1, into: &buffer)
      phase = .over
      return .closing
    }
  }
}

// MARK: - Deltas of all

extension EventStream {
  private var afterText: Phase { answer.toolCalls.isEmpty ? .finish : .openTool(0) }

  private mutating func textDelta(into buffer: inout ByteBuffer) -> Event {
    let end = answer.text.deltaEnd(from: offset)
    let range = offset..<end
    guard !range.isEmpty else {
      // Only an empty text gets here: nothing to say, but Anthropic's block has to end.
      if wire == .anthropic { endBlock(into: &buffer) }
      phase = afterText
      return .closing
    }
    switch wire {
    case .openAI:
      OpenAIWire.chunk(answer, choice: choice, tokens: range, into: &buffer) {
        $0.writeStaticString(answer.isCompletion ? "\"text\":\"" : "\"content\":\"")
        answer.text.write(range, to: &$0)
        $0.writeStaticString("\"")
      }
    case .anthropic:
      AnthropicWire.blockDelta(index: block, into: &buffer) {
        $0.writeStaticString("\"type\":\"text_delta\",\"text\":\"")
        answer.text.write(range, to: &$0)
        $0.writeStaticString("\"")
      }
    case .gemini: GeminiWire.textChunk(answer, range, into: &buffer)
    case .ollama: OllamaWire.textLine(answer, range, into: &buffer)
    case .tgi, .tei, .huggingFace:
      block += 1
      TextGenerationWire.tokenEvent(answer, range, index: block, into: &buffer)
    case .replicate: break
    }
    offset = end
    if offset == answer.text.count {
      if wire == .anthropic { endBlock(into: &buffer) }
      phase = afterText
    }
    return .tokens(answer.text.tokens(in: range))
  }

  /// Bytes of one fragment of a tool's arguments; small, so that clients must join them.
  private static var argumentFragment: Int { 12 }

  private mutating func argumentsDelta(_ index: Int, into buffer: inout ByteBuffer) -> Event {
    let arguments = answer.toolCalls[index].arguments
    var end = min(offset + Self.argumentFragment, arguments.count)
    while end < arguments.count, arguments[end] & 0xC0 == 0x80 { end += 1 }
    let fragment = arguments[offset..<end]
    switch wire {
    case .openAI:
      OpenAIWire.chunk(answer, choice: choice, into: &buffer) {
        OpenAIWire.toolCallArguments(fragment, index: index, into: &$0)
      }
    case .anthropic:
      AnthropicWire.blockDelta(index: block, into: &buffer) {
        $0.writeStaticString("\"type\":\"input_json_delta\",\"partial_json\":\"")
        $0.writeJSONEscaped(fragment)
        $0.writeStaticString("\"")
      }
    case .gemini: break
    case .ollama, .tgi, .tei, .huggingFace, .replicate: break
    }
    offset = end
    if offset == arguments.count {
      if wire == .anthropic { endBlock(into: &buffer) }
      phase = index + 1 < answer.toolCalls.count ? .openTool(index + 1) : .finish
    }
    return .tokens(1)
  }
}
