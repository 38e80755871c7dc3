/// A request in the words of a model on Replicate: an object of inputs.
struct ReplicateInput {
  let parts: RequestParts
  let json: [UInt8]

  init(_ call: Call) throws(Failure) {
    var params = ParameterTranslation(try RequestParts(call))
    var inputs: [(key: String, write: (inout JSONWriter) -> Void)] = []
    func add(_ name: String, _ value: JSON?) {
      guard let value else { return }
      inputs.append((name, { $0.splice(value) }))
    }
    func add(_ name: String, _ value: String) {
      guard !value.isEmpty else { return }
      inputs.append((name, { $0.string(value) }))
    }
    let options = params.options
    func name(_ option: StaticString, _ usual: String) -> String {
      options[option]?.string ?? usual
    }

    for (name, value) in options["input"]?.members ?? [] where value.kind != .null {
      add(name, value)
    }
    if call.kind == .image {
      add("num_outputs", params.take("n"))
    } else {
      try params.refuseSeveralAnswers()
      add(name("max_tokens_param", "max_tokens"), params.takeOutputLimit())
      if let stops = params.takeStops() {
        add("stop_sequences", stops.compactMap(\.string).joined(separator: ","))
      }
      for same in ["temperature", "top_p", "seed", "presence_penalty", "frequency_penalty"] {
        add(same, params.take(same))
      }
      if let effort = params.take("reasoning_effort") { add("reasoning_effort", effort) }
    }
    if call.kind == .chat, let target = options["messages_param"]?.string {
      add(target, try params.parts.messages())
    } else {
      let said = try Said(params.parts)
      add(name("system_param", "system_prompt"), said.system)
      inputs.append((name("prompt_param", "prompt"), { $0.string(said.prompt) }))
      if let image = said.image { add(name("image_param", "image"), image) }
    }
    for (name, value) in params.takeRest() { add(name, value) }

    var writer = JSONWriter(reserving: call.request.count + 128)
    writer.beginObject()
    // The last of a name counts: what the app says goes over the options.
    for (index, input) in inputs.enumerated()
    where !inputs[(index + 1)...].contains(where: { $0.key == input.key }) {
      writer.key(input.key)
      input.write(&writer)
    }
    writer.endObject()
    json = writer.bytes
    parts = params.parts
  }

  /// Messages as one text, for models that take no messages.
  private struct Said {
    var system = ""
    var prompt = ""
    /// The last one, of several; most models take one.
    var image: String?

    init(_ parts: RequestParts) throws(Failure) {
      if let text = parts.request["input"] {
        guard let text = text.string else {
          throw Failure(.unsendable, message: "the input must be one text")
        }
        prompt = text
        return
      }
      var turns: [(role: String, text: String)] = []
      for (number, message) in try parts.messages().elements.enumerated() {
        let role = message["role"]?.string ?? ""
        let text = try read(message["content"], "messages[\(number)]")
        switch role {
        case "system", "developer": system += (system.isEmpty ? "" : "\n\n") + text
        case "user", "assistant": turns.append((role, text))
        default:
          throw Failure(
            .unsendable,
            message:
              "messages[\(number)] has the role \"\(role.prefix(50))\", for which a prompt has no "
              + "words; a model that takes messages needs the option messages_param")
        }
      }
      guard turns.count != 1 || turns[0].role != "user" else {
        prompt = turns[0].text
        return
      }
      for (role, text) in turns {
        prompt += (role == "user" ? "User: " : "Assistant: ") + text + "\n\n"
      }
      prompt += "Assistant:"
    }

    private mutating func read(_ content: JSON?, _ place: String) throws(Failure) -> String {
      guard let content else { return "" }
      guard content.kind == .array else { return content.string ?? "" }
      var texts: [String] = []
      for part in content.elements {
        switch part["type"]?.string {
        case "text": texts.append(part["text"]?.string ?? "")
        case "image_url":
          image = part["image_url"]?["url"]?.string ?? part["image_url"]?.string
        case let type:
          guard let text = part.string else {
            throw Failure(
              .unsendable,
              message: "\(place) has a part of type \"\((type ?? "").prefix(50))\", which a prompt "
                + "cannot hold")
          }
          texts.append(text)
        }
      }
      return texts.joined(separator: "\n")
    }
  }
}
