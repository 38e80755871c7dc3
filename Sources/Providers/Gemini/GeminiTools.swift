/// `tools`, `tool_choice` and the settings of calls. Tools without `type` and `function` are taken for
/// Gemini's own (`{"googleSearch": {}}`) and pass as they are.
struct GeminiTools {
  private let parts: RequestParts

  init(_ parts: RequestParts) {
    self.parts = parts
  }

  func write(to writer: inout JSONWriter) throws(Failure) {
    guard let tools = parts.param("tools")?.elements, !tools.isEmpty else { return }
    writer.key("tools")
    writer.beginArray()
    let functions = tools.enumerated().filter { $0.element["function"] != nil }
    if !functions.isEmpty {
      writer.beginObject()
      writer.key("functionDeclarations")
      writer.beginArray()
      for (number, tool) in functions {
        try writeFunction(tool, "tools[\(number)]", to: &writer)
      }
      writer.endArray()
      writer.endObject()
    }
    for (number, tool) in tools.enumerated() where tool["function"] == nil {
      guard tool.kind == .object, tool["type"] == nil else {
        throw Failure(
          .unsendable, message: "tools[\(number)] is no function, and no tool of Gemini's API")
      }
      writer.splice(tool)
    }
    writer.endArray()
    try writeChoice(to: &writer)
  }

  private func writeFunction(
    _ tool: JSON, _ place: String, to writer: inout JSONWriter
  ) throws(Failure) {
    let function = tool["function"]
    guard let name = function?["name"]?.string else {
      throw Failure(.unsendable, message: "\(place).function has no name")
    }
    writer.beginObject()
    writer.member("name", name)
    if let description = function?["description"]?.string {
      writer.member("description", description)
    }
    if let parameters = function?["parameters"] {
      writer.key("parametersJsonSchema")
      writer.splice(parameters)
    }
    writer.endObject()
  }

  private func writeChoice(to writer: inout JSONWriter) throws(Failure) {
    let given = parts.param("tool_config") ?? parts.param("toolConfig")
    var mode: String?
    var name: String?
    if let choice = parts.param("tool_choice") {
      let word = choice.string ?? choice["type"]?.string ?? ""
      switch word {
      case "auto": mode = "AUTO"
      case "none": mode = "NONE"
      case "required", "any": mode = "ANY"
      case "function":
        mode = "ANY"
        name = choice["function"]?["name"]?.string
        if name == nil { throw Failure(.unsendable, message: "tool_choice names no function") }
      default:
        throw Failure(
          .unsendable, message: "tool_choice must be auto, none, required or a function by name")
      }
    }
    guard given != nil || mode != nil else { return }
    writer.key("toolConfig")
    writer.beginObject()
    for (key, value) in given?.members ?? []
    where mode == nil || key != "functionCallingConfig" {
      writer.key(key)
      writer.splice(value)
    }
    if let mode {
      writer.key("functionCallingConfig")
      writer.beginObject()
      writer.member("mode", mode)
      if let name {
        writer.key("allowedFunctionNames")
        writer.beginArray()
        writer.string(name)
        writer.endArray()
      }
      writer.endObject()
    }
    writer.endObject()
  }
}
