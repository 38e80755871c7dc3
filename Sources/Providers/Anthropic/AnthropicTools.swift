/// `tools`, `tool_choice` and `parallel_tool_calls`. Tools of another type than `function` are taken
/// for Anthropic's own (`web_search_…`) and pass as they are.
struct AnthropicTools {
  private let parts: RequestParts

  init(_ parts: RequestParts) {
    self.parts = parts
  }

  func write(to writer: inout JSONWriter) throws(Failure) {
    guard let tools = parts.param("tools")?.elements, !tools.isEmpty else { return }
    writer.key("tools")
    writer.beginArray()
    for (number, tool) in tools.enumerated() {
      try writeTool(tool, "tools[\(number)]", to: &writer)
    }
    writer.endArray()
    try writeChoice(to: &writer)
  }

  private func writeTool(
    _ tool: JSON, _ place: String, to writer: inout JSONWriter
  ) throws(Failure) {
    guard let function = tool["function"] else {
      guard tool["custom"] == nil else {
        throw Failure(
          .unsendable, message: "\(place) is a custom tool, which Anthropic's API lacks")
      }
      return writer.splice(tool)
    }
    guard let name = function["name"]?.string else {
      throw Failure(.unsendable, message: "\(place).function has no name")
    }
    writer.beginObject()
    writer.member("name", name)
    if let description = function["description"]?.string {
      writer.member("description", description)
    }
    writer.key("input_schema")
    if let parameters = function["parameters"] {
      writer.splice(parameters)
    } else {
      writer.beginObject()
      writer.member("type", "object")
      writer.endObject()
    }
    if function["strict"]?.bool == true { writer.member("strict", true) }
    if let cacheControl = tool["cache_control"] {
      writer.key("cache_control")
      writer.splice(cacheControl)
    }
    writer.endObject()
  }

  private func writeChoice(to writer: inout JSONWriter) throws(Failure) {
    let choice = parts.param("tool_choice")
    let oneAtATime = parts.param("parallel_tool_calls")?.bool == false
    var type = "auto"
    var name: String?
    if let word = choice?.string {
      guard let known = ["auto": "auto", "none": "none", "required": "any", "any": "any"][word]
      else {
        throw Failure(.unsendable, message: "tool_choice \"\(word)\" is not known")
      }
      type = known
    } else if let choice, choice.kind == .object {
      switch choice["type"]?.string {
      case "function":
        type = "tool"
        name = choice["function"]?["name"]?.string
      case "tool":
        type = "tool"
        name = choice["name"]?.string
      case let word? where ["auto", "any", "none"].contains(word):
        type = word
      default:
        throw Failure(
          .unsendable, message: "tool_choice must be auto, none, required or a function by name")
      }
      if type == "tool" && name == nil {
        throw Failure(.unsendable, message: "tool_choice names no function")
      }
    }
    guard choice != nil || oneAtATime else { return }
    writer.key("tool_choice")
    writer.beginObject()
    writer.member("type", type)
    if let name { writer.member("name", name) }
    if type != "none", oneAtATime || choice?["disable_parallel_tool_use"]?.bool == true {
      writer.member("disable_parallel_tool_use", true)
    }
    writer.endObject()
  }
}
