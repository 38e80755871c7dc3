import NIOCore

/// Bodies and events of text generation, as Text Generation Inference writes them and Hugging Face's SDK
/// reads them.
enum TextGenerationWire {
  /// Everything of a whole answer before its text; `tail` is what follows. Through Hugging Face it comes
  /// as an array of one.
  static func head(_ wire: Wire, into buffer: inout ByteBuffer) {
    buffer.writeStaticString(
      wire == .huggingFace ? "[{\"generated_text\":\"" : "{\"generated_text\":\"")
  }

  static func tail(_ answer: Answer, _ wire: Wire, into buffer: inout ByteBuffer) {
    buffer.writeStaticString("\",\"details\":{")
    details(answer, into: &buffer)
    buffer.writeStaticString(",\"seed\":null,\"prefill\":[],\"tokens\":[]}}")
    if wire == .huggingFace { buffer.writeStaticString("]") }
  }

  static func tokenEvent(
    _ answer: Answer, _ range: Range<Int>, index: Int, into buffer: inout ByteBuffer
  ) {
    token(index, special: false, into: &buffer) { answer.text.write(range, to: &$0) }
    buffer.writeStaticString(",\"generated_text\":null,\"details\":null}\n\n")
  }

  /// The end of the sequence is a token of its own, which is not part of the text.
  static func lastEvent(_ answer: Answer, index: Int, into buffer: inout ByteBuffer) {
    token(index, special: true, into: &buffer) { $0.writeStaticString("</s>") }
    buffer.writeStaticString(",\"generated_text\":\"")
    answer.text.write(0..<answer.text.count, to: &buffer)
    buffer.writeStaticString("\",\"details\":{")
    details(answer, into: &buffer)
    buffer.writeStaticString(",\"input_length\":")
    buffer.writeDecimal(answer.usage.input)
    buffer.writeStaticString(",\"seed\":null}}\n\n")
  }

  static let brokenEvent: StaticString = "data:{\"index\":1,\"token\":{\"id\":1,\"te\n\n"

  private static func token(
    _ index: Int, special: Bool, into buffer: inout ByteBuffer,
    text: (inout ByteBuffer) -> Void
  ) {
    buffer.writeStaticString("data:{\"index\":")
    buffer.writeDecimal(index)
    buffer.writeStaticString(",\"token\":{\"id\":")
    buffer.writeDecimal(special ? 2 : 1_000 + index)
    buffer.writeStaticString(",\"text\":\"")
    text(&buffer)
    buffer.writeStaticString(
      special ? "\",\"logprob\":-0.25,\"special\":true}" : "\",\"logprob\":-0.25,\"special\":false}"
    )
  }

  private static func details(_ answer: Answer, into buffer: inout ByteBuffer) {
    buffer.writeStaticString("\"finish_reason\":\"")
    buffer.writeBytes(answer.finish)
    buffer.writeStaticString("\",\"generated_tokens\":")
    buffer.writeDecimal(answer.usage.output)
  }
}
