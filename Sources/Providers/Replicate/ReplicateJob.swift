/// Where a prediction is to be had, and what of its stream has arrived.
struct ReplicateJob: Sendable {
  private enum Phase: Sendable { case made, streamed, asked }

  private(set) var id: String?
  private let prefix: String
  private let streams: Bool
  private var streamURL: String?
  private var phase = Phase.made
  private var pauses: PollPauses

  private var firstEvent: String?
  private var lastEvent: String?
  private var comingEvent: String?
  private var sawEvent = false
  /// Tries to open the stream.
  private var openings = 0
  /// The stream was opened again, and what it begins with is not known yet.
  private var wasReopened = false
  /// The stream began anew; events are known until the last one comes by.
  private var isRepeating = false
  private var hasEnded = false
  /// The stream said that it is over, and nothing went wrong.
  private(set) var wasStreamedWhole = false

  init(_ call: Call) {
    prefix = Replicate.prefix(call.baseURL)
    streams = Replicate.streams(call)
    pauses = PollPauses(options: JSON(call.options), normal: 500)
  }

  var isStreaming: Bool { phase == .streamed }

  mutating func read(_ prediction: JSON) {
    // A part of an address has no place for more than the ids that Replicate makes.
    if id == nil, let name = prediction["id"]?.string, (1...100).contains(name.utf8.count),
      name.utf8.allSatisfy({ byte in
        (0x30...0x39).contains(byte) || (0x41...0x5A).contains(byte) || (0x61...0x7A).contains(byte)
          || byte == UInt8(ascii: "-") || byte == UInt8(ascii: "_")
      })
    {
      id = name
    }
    streamURL = streamURL ?? prediction["urls"]?["stream"]?.string
  }

  mutating func eventID(_ id: String) { comingEvent = id }

  /// Whether the event that comes was not seen before.
  mutating func takesEvent() -> Bool {
    let event = comingEvent
    comingEvent = nil
    sawEvent = true
    guard let event else { return !isRepeating }
    if wasReopened {
      wasReopened = false
      isRepeating = event == firstEvent
    }
    if isRepeating {
      if event == lastEvent { isRepeating = false }
      return false
    }
    firstEvent = firstEvent ?? event
    lastEvent = event
    pauses.goesOn()
    return true
  }

  mutating func streamEnded(reason: String?) {
    hasEnded = true
    wasStreamedWhole = reason == nil
  }

  mutating func followUp(_ ended: ResponseEnd, _ isPending: Bool) -> FollowUp? {
    guard id != nil else { return nil }
    var isOver = false
    if case .complete = ended { isOver = true }
    switch phase {
    case .made:
      if isOver, isPending, streams, let streamURL { return stream(streamURL, after: 0) }
      phase = .asked
      return ask(after: isOver ? pauses.next(hint: ended.wait) : 0, isPending)
    case .streamed:
      // Without ids nobody knows where to go on. A stream that never gave anything is tried twice: the
      // answer is to be had without it.
      let mayResume = !hasEnded && (lastEvent != nil || !sawEvent && !isOver && openings < 2)
      if mayResume, isOver || ended.isPassing, let streamURL,
        let pause = pauses.afterTrouble(hint: ended.wait)
      {
        return stream(streamURL, after: pause)
      }
      phase = .asked
      return ask(after: hasEnded ? 0 : pauses.next(), false)
    case .asked:
      if isOver, isPending { return ask(after: pauses.next(hint: ended.wait), true) }
      guard ended.isPassing, let pause = pauses.afterTrouble(hint: ended.wait) else { return nil }
      return ask(after: pause, false)
    }
  }

  var farewell: FollowUp? {
    guard let id else { return nil }
    var cancel = FollowUp(.path("\(prefix)/predictions/\(id)/cancel"))
    cancel.method = "POST"
    return cancel
  }

  private mutating func stream(_ url: String, after pause: Int) -> FollowUp {
    phase = .streamed
    openings += 1
    wasReopened = lastEvent != nil
    isRepeating = false
    comingEvent = nil
    var next = FollowUp(.url(url))
    next.headers = [("accept", "text/event-stream"), ("cache-control", "no-store")]
    if let lastEvent, lastEvent.utf8.allSatisfy({ (0x20...0x7E).contains($0) }) {
      next.headers.append(("last-event-id", lastEvent))
    }
    next.delay = pause
    return next
  }

  private func ask(after pause: Int, _ supersedes: Bool) -> FollowUp {
    var next = FollowUp(.path("\(prefix)/predictions/\(id ?? "")"))
    next.headers = [("accept", "application/json")]
    next.delay = pause
    next.supersedes = supersedes
    return next
  }
}
