/// A job that is asked for until it is done, by the description under `poll`.
struct CustomJob: Sendable {
  enum State { case pending, done, failed }

  private let poll: JSON?
  private var pauses: PollPauses?
  /// Where the job is asked for, once it is known.
  private var status: FollowUp.Target?
  /// Where its result stands, where that is another place.
  private var result: FollowUp.Target?
  private var cancel: FollowUp.Target?
  private var isFetched = false

  init(_ spec: CustomSpec?) {
    poll = spec?.poll
    pauses = spec.map { PollPauses(options: $0.options, normal: 500) }
  }

  /// What a response says of the job; without one every response is the answer.
  mutating func state(of json: JSON) -> State {
    guard let poll, !isFetched else { return .done }
    status = target("url", "path", json) ?? status
    result = target("result_url", "result_path", json) ?? result
    cancel = target("cancel_url", "cancel_path", json) ?? cancel
    let word = json.value(at: poll["status"])?.word ?? ""
    if poll["failed"]?.elements.contains(where: { $0.word == word }) == true { return .failed }
    let isDone = poll["done"]?.elements.contains { $0.word == word } == true
    if !isDone { return status == nil ? .failed : .pending }
    guard poll["result_url"] != nil || poll["result_path"] != nil else { return .done }
    isFetched = true
    return result == nil ? .failed : .pending
  }

  mutating func followUp(_ ended: ResponseEnd) -> FollowUp? {
    guard let target = isFetched ? result : status else { return nil }
    var next = FollowUp(target)
    next.supersedes = true
    if case .complete(let wait) = ended {
      next.delay = isFetched ? 0 : pauses?.next(hint: wait) ?? 0
      return next
    }
    guard ended.isPassing, let pause = pauses?.afterTrouble(hint: ended.wait) else { return nil }
    next.delay = pause
    return next
  }

  var farewell: FollowUp? {
    guard let cancel else { return nil }
    var last = FollowUp(cancel)
    last.method = poll?["cancel_method"]?.string ?? "POST"
    return last
  }

  /// An address that the response names, or a path with the job's `${id}` in it.
  private func target(_ url: String, _ path: String, _ json: JSON) -> FollowUp.Target? {
    if let given = json.value(at: poll?.member(named: url))?.string, !given.isEmpty {
      return given.hasPrefix("/") ? .path(given) : .url(given)
    }
    guard let template = poll?.member(named: path)?.string,
      let id = json.value(at: poll?["id"])?.word, !id.isEmpty,
      id.utf8.allSatisfy({ "-._~".utf8.contains($0) || Self.isWord($0) }), id != ".", id != ".."
    else { return nil }
    let pieces = template.split(separator: "${id}", omittingEmptySubsequences: false)
    return .path(pieces.joined(separator: id))
  }

  private static func isWord(_ byte: UInt8) -> Bool {
    switch byte {
    case 0x30...0x39, 0x41...0x5A, 0x61...0x7A: true
    default: false
    }
  }
}
