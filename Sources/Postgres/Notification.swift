/// What a `NOTIFY` brought.
package struct Notification: Sendable, Equatable {
  package let channel: String
  /// Below 8,000 bytes; empty where there was none.
  package let payload: String
  /// The process of the session that notified.
  package let processID: Int32

  package init(channel: String, payload: String, processID: Int32) {
    self.channel = channel
    self.payload = payload
    self.processID = processID
  }
}
