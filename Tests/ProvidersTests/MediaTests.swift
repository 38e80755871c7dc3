import Testing

@testable import Providers

/// Images, speech and transcriptions of the dialect `openai`, and files in messages.
@Suite struct MediaTests {
  static let png: [UInt8] = [0x89, 0x50, 0x4E, 0x47, 0x0D, 0x0A, 0x1A, 0x0A, 0xFF, 0x00, 0x10]

  static func base64(_ bytes: [UInt8]) -> String {
    var text: [UInt8] = []
    Base64.append(bytes, to: &text)
    return String(decoding: text, as: UTF8.self)
  }

  private func media(
    _ kind: CallKind, _ request: String, options: String = "{}"
  ) -> Call {
    Call(
      kind: kind, dialect: "openai", baseURL: "https://api.test/v1", secret: "secret-value",
      headers: [:], model: "m", stream: false, request: Array(request.utf8),
      options: Array(options.utf8))
  }

  private func read(
    _ call: Call, _ body: [UInt8], type: String = "application/json", status: Int = 200,
    end: TransferEnd = .complete
  ) -> Outcome {
    var reader = OpenAI.reader(for: call)
    _ = reader.head(
      ResponseHead(status: status, headers: ["content-type": type, "x-request-id": "r1"]))
    if !body.isEmpty { _ = reader.receive(event: nil, data: body) }
    return reader.finish(end)
  }

  // MARK: Requests

  @Test func aTextBecomesAGenerationOfAnImage() throws {
    let request = try OpenAI.request(
      for: media(
        .image, #"{"input": "A bird", "params": {"size": "1024x1024", "n": 1}}"#,
        options: #"{"image_response_format": "b64_json"}"#))
    #expect(request.url == "https://api.test/v1/images/generations")
    #expect(
      String(decoding: request.body, as: UTF8.self)
        == #"{"model":"m","prompt":"A bird","size":"1024x1024","n":1,"response_format":"b64_json"}"#
    )
  }

  @Test func anImageWithAnImageIsAFormThatHoldsItsBytes() throws {
    let url = "data:image/png;base64,\(Self.base64(Self.png))"
    let request = try OpenAI.request(
      for: media(
        .image,
        #"{"input": [{"role": "user", "content": [{"type": "text", "text": "Bluer"}, {"type": "image_url", "image_url": {"url": ""#
          + url + #""}}]}], "params": {"quality": "low", "tags": ["a", "b"]}}"#))
    #expect(request.url == "https://api.test/v1/images/edits")
    let type = try #require(request.headers.last { $0.name == "content-type" }?.value)
    #expect(request.headers.filter { $0.name == "content-type" }.count == 1)
    let boundary = try #require(type.split(separator: "=").last)
    let body = request.body
    #expect(
      contains(body, "--\(boundary)\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nm\r\n")
    )
    #expect(contains(body, "name=\"prompt\"\r\n\r\nBluer\r\n"))
    #expect(contains(body, "name=\"tags[]\"\r\n\r\nb\r\n"))
    #expect(
      contains(
        body,
        Array("name=\"image\"; filename=\"image.png\"\r\nContent-Type: image/png\r\n\r\n".utf8)
          + Self.png + Array("\r\n--\(boundary)--\r\n".utf8)))
  }

  @Test func aTranscriptionSendsTheSoundAndTheTextBesideIt() throws {
    let request = try OpenAI.request(
      for: media(
        .transcription,
        #"{"input": [{"role": "user", "content": [{"type": "text", "text": "Names: \"Åse\""}, {"type": "input_audio", "input_audio": {"data": ""#
          + Self.base64([1, 2, 3]) + #"", "format": "mp3"}}]}], "params": {"temperature": 0}}"#))
    #expect(request.url == "https://api.test/v1/audio/transcriptions")
    #expect(contains(request.body, "name=\"prompt\"\r\n\r\nNames: \"Åse\"\r\n"))
    #expect(contains(request.body, "name=\"temperature\"\r\n\r\n0\r\n"))
    #expect(
      contains(
        request.body,
        Array("filename=\"audio.mp3\"\r\nContent-Type: audio/mpeg\r\n\r\n".utf8) + [1, 2, 3, 13]))
  }

  @Test(arguments: [
    "a\"; filename=\"x", "a\r\nContent-Type: text/html\r\n\r\n", "a\0b", "--martlet-1-2--",
  ])
  func aNameCannotLeaveItsPlaceInAForm(_ name: String) throws {
    var writer = JSONWriter()
    writer.beginObject()
    writer.member("filename", name)
    writer.member("file_data", "data:audio/wav;base64,AQID")
    writer.endObject()
    let file = String(decoding: writer.bytes, as: UTF8.self)
    let request = try OpenAI.request(
      for: media(
        .transcription,
        #"{"input": [{"role": "user", "content": [{"type": "file", "file": "# + file
          + #"}]}], "params": {}}"#))
    let text = String(decoding: request.body, as: UTF8.self)
    #expect(text.components(separatedBy: "Content-Disposition").count == 3)
    #expect(!text.contains("filename=\"x\""))
  }

  @Test(arguments: [
    (CallKind.image, #"{"input": "", "params": {}}"#), (.image, #"{"params": {}}"#),
    (.speech, #"{"input": "", "params": {}}"#),
    (.transcription, #"{"input": "text", "params": {}}"#),
    (
      .transcription,
      #"{"input": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "https://x.test"}}]}], "params": {}}"#
    ),
    (
      .image,
      #"{"input": [{"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {"url": "https://x.test"}}]}], "params": {}}"#
    ),
  ])
  func whatLacksItsInputIsUnsendable(_ kind: CallKind, _ request: String) {
    #expect(throws: Failure.self) { try OpenAI.request(for: media(kind, request)) }
  }

  // MARK: Answers

  static let image =
    #"{"created":1,"output_format":"webp","quality":"low","size":"1024x1024","data":[{"b64_json":""#
    + base64(png)
    + #""},{"url":"https://files.test/1"}],"usage":{"input_tokens":50,"output_tokens":272,"total_tokens":322,"input_tokens_details":{"image_tokens":40,"text_tokens":10}}}"#

  @Test func imagesComeAsBytesOrAddressesWithWhatTheyCost() throws {
    let reply = try read(media(.image, #"{"input": "x"}"#), Array(Self.image.utf8)).get()
    #expect(
      reply.files == [
        ProducedFile(mediaType: "image/png", content: .bytes(Self.png)),
        ProducedFile(mediaType: "image/webp", content: .url("https://files.test/1")),
      ])
    #expect(reply.usage?.input == 50 && reply.usage?.output == 272)
    #expect(
      reply.usage?.units == [
        "image_input": "40", "image_output": "272", "images:low_1024x1024": "2",
      ])
    #expect(reply.requestID == "r1")
  }

  @Test func anImageCutAtAnyByteIsNeverASuccess() {
    let body = Array(Self.image.utf8)
    for length in 0..<body.count {
      for end in [TransferEnd.complete, .broken(.truncated, "cut")] {
        let outcome = read(media(.image, #"{"input": "x"}"#), Array(body[..<length]), end: end)
        guard case .failure(let failure) = outcome else {
          Issue.record("a success at \(length)")
          continue
        }
        #expect([.truncated, .malformed, .empty].contains(failure.signal), "at \(length)")
      }
    }
  }

  @Test(arguments: [
    #"{"data":[]}"#, #"{"data":[{}]}"#, #"{"data":[{"b64_json":"%%%"}]}"#, #"{"data":"x"}"#, "[]",
    #"{"data":[{"b64_json":""}]}"#, "null", #"{"data":[{"url":""}]}"#,
  ])
  func whatIsNoImageIsMalformed(_ body: String) {
    guard case .failure(let failure) = read(media(.image, #"{"input": "x"}"#), Array(body.utf8))
    else {
      Issue.record("a success: \(body)")
      return
    }
    #expect(failure.signal == .malformed)
  }

  @Test func aTranscriptionIsItsTextWithItsSeconds() throws {
    let body =
      #"{"text":"Grüße","language":"english","duration":2.5,"segments":[{"id":0,"text":"Grüße"}],"usage":{"type":"duration","seconds":3}}"#
    let reply = try read(media(.transcription, "{}"), Array(body.utf8)).get()
    #expect(reply.output == "Grüße")
    #expect(reply.usage?.units == ["seconds": "3"] && reply.usage?.input == 0)
    #expect(reply.message != nil)
    let tokens =
      #"{"text":"x","usage":{"type":"tokens","input_tokens":14,"output_tokens":5,"total_tokens":19,"input_token_details":{"audio_tokens":10,"text_tokens":4}}}"#
    let counted = try read(media(.transcription, "{}"), Array(tokens.utf8)).get()
    #expect(counted.usage?.input == 14 && counted.usage?.output == 5)
    #expect(counted.usage?.units == ["audio_input": "10"])
    for length in 0..<body.utf8.count {
      let cut = Array(body.utf8.prefix(length))
      if case .success = read(media(.transcription, "{}"), cut) { Issue.record("at \(length)") }
    }
  }

  @Test(arguments: ["text", "srt", "vtt"])
  func aTranscriptionAsTextIsTheBody(_ format: String) throws {
    let call = media(.transcription, #"{"input": [], "params": {"response_format": "\#(format)"}}"#)
    #expect(
      try read(call, Array("1\nHello\n".utf8), type: "text/plain").get().output == "1\nHello\n")
    let error = Array(#"{"error": {"message": "no", "type": "t"}}"#.utf8)
    guard case .failure(let failure) = read(call, error, status: 400) else {
      Issue.record("a success")
      return
    }
    #expect(failure.signal == .http && failure.type == "t")
    if case .success = read(call, Array("Hel".utf8), type: "text/plain", end: .broken(.reset, "x"))
    {
      Issue.record("a broken text is a success")
    }
  }

  @Test func speechIsTheBodyWithItsCharacters() throws {
    let call = media(.speech, #"{"input": "Grüße!", "params": {"response_format": "opus"}}"#)
    let reply = try read(call, [1, 2, 3], type: "audio/opus; codecs=x").get()
    #expect(reply.files == [ProducedFile(mediaType: "audio/opus", content: .bytes([1, 2, 3]))])
    #expect(reply.usage?.units == ["characters": "6"])
    let unknown = try read(call, [1], type: "application/octet-stream").get()
    #expect(unknown.files.first?.mediaType == "audio/ogg")
  }

  @Test(arguments: [
    ("application/json", #"{"error": {"message": "no"}}"#, 200), ("text/html", "<html>", 200),
    ("application/json", "", 200), ("audio/mpeg", "", 200), ("audio/mpeg", "x", 500),
  ])
  func whatIsNoSoundIsNoSpeech(_ type: String, _ body: String, _ status: Int) {
    let call = media(.speech, #"{"input": "x", "params": {}}"#)
    if case .success = read(call, Array(body.utf8), type: type, status: status) {
      Issue.record("a success: \(type) \(body)")
    }
  }

  @Test func soundThatBrokeOffIsNoSuccess() {
    let call = media(.speech, #"{"input": "x", "params": {}}"#)
    let outcome = read(call, [1, 2], type: "audio/mpeg", end: .broken(.truncated, "cut"))
    guard case .failure(let failure) = outcome else {
      Issue.record("a success")
      return
    }
    #expect(failure.signal == .truncated)
  }

  // MARK: Files in messages

  @Test func filesTakeTheFormOfTheirType() throws {
    let request =
      #"{"files": {}, "params": {"a": 1}, "messages": [{"role": "user", "content": [{"type": "artifact", "artifact": "I"}, {"type": "artifact", "artifact": "a"}, {"type": "artifact", "artifact": "t"}, {"type": "artifact", "artifact": "p"}, {"type": "artifact", "artifact": "other"}, {"type": "image_url", "image_url": {"url": "https://u.test/x", "detail": "low"}}, {"type": "input_audio", "input_audio": {"data": "https://u.test/a"}}]}]}"#
    let filled = try FilledRequest.fill(
      Array(request.utf8),
      with: [
        "i": FileContent(mediaType: "image/png", bytes: [1]),
        "a": FileContent(mediaType: "audio/mpeg", bytes: [2]),
        "t": FileContent(mediaType: "text/plain", bytes: Array("\"Grüße\"\n".utf8)),
        "p": FileContent(mediaType: "application/pdf", name: "p.pdf", bytes: [3]),
        "https://u.test/x": FileContent(mediaType: "image/gif", bytes: [4]),
        "https://u.test/a": FileContent(mediaType: "audio/x-wav", bytes: [5]),
      ])
    let text = String(decoding: filled, as: UTF8.self)
    #expect(JSON(filled) != nil)
    for part in [
      #"{"type":"image_url","image_url":{"url":"data:image/png;base64,AQ=="}}"#,
      #"{"type":"input_audio","input_audio":{"data":"Ag==","format":"mp3"}}"#,
      #"{"type":"text","text":"\"Grüße\"\n"}"#,
      #"{"type":"file","file":{"filename":"p.pdf","file_data":"data:application/pdf;base64,Aw=="}}"#,
      #"{"type": "artifact", "artifact": "other"}"#,
      #""image_url":{"url":"data:image/gif;base64,BA==","detail":"low"}"#,
      #""input_audio":{"data":"BQ==","format":"wav"}"#, #""params":{"a": 1}"#,
    ] {
      #expect(text.contains(part), "\(part)")
    }
    #expect(!text.contains(#""files""#))
  }

  @Test func aRequestSaysWhatItNeeds() throws {
    #expect(try RequestFile.wanted(by: Array(#"{"params": {}, "messages": []}"#.utf8)).isEmpty)
    let files = try RequestFile.wanted(
      by: Array(
        #"{"files": {"i": {"bytes": 3, "tenant": "t", "sha256": "ab", "media_type": "image/png", "object": null}, "o": {"bytes": 4, "object": {"url": "https://s.test/b/k", "region": "r", "secret": "S_KEY", "ref": 7}}, "https://u.test": {"url": "https://u.test", "bytes": 9}, "g": {"gone": true}}, "params": {}}"#
          .utf8))
    #expect(files.map(\.key) == ["i", "o", "https://u.test", "g"])
    #expect(files[0].source == .parts && files[0].sha256 == "ab" && files[0].tenant == "t")
    guard case .object(let object) = files[1].source else {
      Issue.record("no object")
      return
    }
    #expect(object.url == "https://s.test/b/k" && object.secretRef == 7)
    #expect(files[2].source == .url("https://u.test") && files[2].bytes == 9)
    #expect(files[3].source == .gone)
    #expect(throws: Failure.self) { try RequestFile.wanted(by: Array(#"{"files": [1]}"#.utf8)) }
  }

  @Test func base64OfAnyLengthComesBack() {
    for length in 0...67 {
      let bytes = (0..<length).map { UInt8(truncatingIfNeeded: $0 &* 37 &+ 200) }
      #expect(Base64.bytes(Self.base64(bytes)) == bytes)
    }
  }

  private func contains(_ body: [UInt8], _ text: String) -> Bool {
    contains(body, Array(text.utf8))
  }

  private func contains(_ body: [UInt8], _ needle: [UInt8]) -> Bool {
    body.indices.contains { body[$0...].starts(with: needle) }
  }
}

extension String {
  fileprivate func components(separatedBy text: String) -> [Substring] {
    var parts: [Substring] = []
    var rest = self[...]
    while let at = rest.indices.first(where: { rest[$0...].hasPrefix(text) }) {
      parts.append(rest[..<at])
      rest = rest[at...].dropFirst(text.count)
    }
    return parts + [rest]
  }
}
