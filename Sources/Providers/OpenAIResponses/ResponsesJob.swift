/// A response as something that lives at the provider: where it is to be had, and what of its stream has
/// arrived. Only with `background` does it live on without its connection.
struct ResponsesJob: Sendable {
  let isBackground: Bool
  private(set) var id: String?

  /// It was said not to be done yet, or is a job anyway.
  private var isFollowed = false
  private let included: [String]
  private var pauses: PollPauses
  /// Number of the last event of the stream that arrived.
  private var sequence: Int?
  /// The provider does not give the stream again.
  private var isPolled: Bool

  init(_ call: Call) {
    let request = JSON(call.request)
    let options = JSON(call.options)
    isBackground = ResponsesParameters.isBackground(request?["params"], options)
    included = ResponsesParameters.included(request?["params"])
    isPolled = !call.stream
    pauses = PollPauses(options: options, normal: 1_000)
  }

  mutating func read(_ response: JSON) {
    // A part of an address has no place for more than the ids that OpenAI makes.
    guard id == nil, let name = response["id"]?.string, (1...200).contains(name.utf8.count),
      name.utf8.allSatisfy(Self.isOfID), name.first != "."
    else { return }
    id = name
  }

  /// Whether an event was not seen before. Those without a number always were not.
  mutating func isNews(_ number: Int?) -> Bool {
    guard let number else { return true }
    if let sequence, number <= sequence { return false }
    sequence = number
    pauses.goesOn()
    return true
  }

  mutating func followUp(_ ended: ResponseEnd, _ isPending: Bool) -> FollowUp? {
    isFollowed = isFollowed || isBackground || isPending
    guard let id, isFollowed else { return nil }
    var query: [String] = []
    var next = FollowUp(.path("/responses/\(id)"))
    if !isPolled, let sequence {
      if ended.isPassing || isComplete(ended) {
        if let pause = pauses.afterTrouble(hint: ended.wait) {
          query += ["stream=true", "starting_after=\(sequence)"]
          next.headers = [("accept", "text/event-stream")]
          next.delay = pause
          return with(query, next)
        }
      }
      // The stream is not to be had any more; the answer may be.
      isPolled = true
      next.delay = pauses.next(hint: ended.wait)
    } else if isComplete(ended) {
      next.delay = pauses.next(hint: ended.wait)
    } else if ended.isPassing, let pause = pauses.afterTrouble(hint: ended.wait) {
      next.delay = pause
    } else {
      return nil
    }
    next.supersedes = isPending
    next.headers = [("accept", "application/json")]
    return with(query, next)
  }

  /// Only jobs can be cancelled; everything else ends with its connection.
  var farewell: FollowUp? {
    guard let id, isBackground else { return nil }
    var cancel = FollowUp(.path("/responses/\(id)/cancel"))
    cancel.method = "POST"
    return cancel
  }

  private func isComplete(_ ended: ResponseEnd) -> Bool {
    if case .complete = ended { true } else { false }
  }

  private func with(_ query: [String], _ next: FollowUp) -> FollowUp {
    let names = included.filter { $0.utf8.allSatisfy(Self.isOfID) }
    let all = query + names.map { "include%5B%5D=\($0)" }
    guard !all.isEmpty, case .path(let path) = next.target else { return next }
    var next = next
    next.target = .path(path + "?" + all.joined(separator: "&"))
    return next
  }

  private static func isOfID(_ byte: UInt8) -> Bool {
    switch byte {
    case 0x30...0x39, 0x41...0x5A, 0x61...0x7A, UInt8(ascii: "_"), UInt8(ascii: "-"): true
    case UInt8(ascii: "."): true
    default: false
    }
  }
}
