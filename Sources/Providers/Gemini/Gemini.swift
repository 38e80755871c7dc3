/// Google's Gemini API: `generateContent`, `streamGenerateContent` and the embeddings. Facts are from
/// the types and converters of the official Python SDK, `google-genai` 3.4.0.
///
/// The base URL names the API's version (`https://generativelanguage.googleapis.com/v1`, or `/v1beta`;
/// one without a path gets `/v1`, as with the SDK) or, for Google Cloud, the publisher
/// (`https://…-aiplatform.googleapis.com/v1/projects/P/locations/L/publishers/google`, with `auth` =
/// `bearer`). A model's name with a slash (`tunedModels/x`) stands as it is, others become `models/x`.
///
/// Options: `auth` (`x-goog-api-key` by default), `thinking_budgets` (tokens by reasoning effort, such
/// as `{"low": 1024}`, for models that know budgets instead of levels), `missing_thought_signature`
/// (sent with calls of tools that carry no signature, because another model made them; none by
/// default).
package enum Gemini: Dialect {
  package static let name = "gemini"

  package static func request(for call: Call) throws(Failure) -> ProviderRequest {
    switch call.kind {
    case .chat, .completion, .image, .speech: try GeminiContents.request(for: call)
    case .embedding: try GeminiEmbeddings.request(for: call)
    default: throw Failure(.unsendable, message: "the dialect gemini has no \(call.kind.rawValue)")
    }
  }

  package static func reader(for call: Call) -> any ResponseReader {
    switch call.kind {
    case .embedding: AnswerReader(GeminiEmbeddingAnswer(to: call), for: call)
    default: AnswerReader(GeminiAnswer(kind: call.kind), for: call)
    }
  }

  /// `models/x` of a model's name, as it stands in a body.
  static func resource(_ model: String) -> String {
    model.utf8.contains(UInt8(ascii: "/")) ? model : "models/\(model)"
  }

  /// The call with the API's version in its base URL, and the path of a method of its model.
  static func address(_ call: Call, _ method: String) throws(Failure) -> (call: Call, path: String)
  {
    var call = call
    var base = Substring(call.baseURL)
    while base.hasSuffix("/") { base.removeLast() }
    let authority = base.range(of: "://").map { base[$0.upperBound...] } ?? base
    call.baseURL = authority.utf8.contains(UInt8(ascii: "/")) ? String(base) : base + "/v1"
    let resource = resource(call.model)
    for part in resource.split(separator: "/", omittingEmptySubsequences: false)
    where part.isEmpty || part == "." || part == ".." {
      throw Failure(.unsendable, message: "the model's name cannot stand in a URL")
    }
    return (call, "/\(escaped(resource)):\(method)")
  }

  /// What RFC 3986 §3.3 allows in a path stays, everything else becomes `%XX`.
  private static func escaped(_ path: String) -> String {
    var out: [UInt8] = []
    for byte in path.utf8 {
      switch byte {
      case 0x30...0x39, 0x41...0x5A, 0x61...0x7A: out.append(byte)
      case _ where "-._~/@:+,=".utf8.contains(byte): out.append(byte)
      default:
        let digits = String(byte, radix: 16, uppercase: true)
        out += Array((digits.utf8.count == 1 ? "%0" : "%").utf8) + Array(digits.utf8)
      }
    }
    return String(decoding: out, as: UTF8.self)
  }
}

extension Substring {
  /// Where `needle`, ASCII, begins and ends.
  fileprivate func range(of needle: StaticString) -> Range<Index>? {
    var at = startIndex
    while at < endIndex {
      if self[at...].utf8.starts(
        with: UnsafeBufferPointer(start: needle.utf8Start, count: needle.utf8CodeUnitCount))
      {
        return at..<utf8.index(at, offsetBy: needle.utf8CodeUnitCount)
      }
      at = utf8.index(after: at)
    }
    return nil
  }
}
