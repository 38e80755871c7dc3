/// What is to be done for a batch at a provider. The raw values are those of `ai.worker_batch_steps()`.
package enum BatchAction: String, Sendable, CaseIterable {
  /// Puts the requests into a file of the provider.
  case upload
  /// Looks for that file.
  case findFile = "find_file"
  case create
  /// Looks for the batch.
  case find
  /// Asks what became of it.
  case poll
  case cancel
  /// Reads its results.
  case collect
}

/// One step for one batch, as `ai.worker_batch_steps()` gives it.
package struct BatchOrder: Sendable {
  package var action: BatchAction
  /// How the provider is reached, and which model: everything but a request.
  package var call: Call
  /// Our id of the batch, a UUID: its name at the provider.
  package var name: String
  /// The provider's id of the batch.
  package var externalID: String?
  /// The provider's ids of the files with the requests, the answers and the errors.
  package var fileID: String?
  package var outputID: String?
  package var errorsID: String?
  /// Members of the batch.
  package var requests = 0
  /// Seconds since 1970 before which the batch cannot have been made.
  package var since = 0

  package init(action: BatchAction, call: Call, name: String) {
    self.action = action
    self.call = call
    self.name = name
  }

  /// The part of a provider's id that goes into a URL; throws where it has other characters than ids have.
  func id(_ id: String?) throws(Failure) -> String {
    guard let id, !id.isEmpty, id.utf8.count <= 300, id.utf8.allSatisfy(Self.isPlain),
      !id.split(separator: "/", omittingEmptySubsequences: false).contains(where: {
        $0.isEmpty || $0 == "." || $0 == ".."
      })
    else {
      throw Failure(.unsendable, message: "the provider's id of the batch cannot stand in a URL")
    }
    return id
  }

  private static func isPlain(_ byte: UInt8) -> Bool {
    switch byte {
    case 0x30...0x39, 0x41...0x5A, 0x61...0x7A: true
    default: "-._~/:".utf8.contains(byte)
    }
  }

  /// A request with the provider's headers and key. GET where there is no body.
  func request(
    path: String, auth: String, ownHeaders: [(name: String, value: String)] = [],
    body: [UInt8] = [], type: String = "application/json", method: String? = nil
  ) throws(Failure) -> ProviderRequest {
    var call = call
    call.request = Array("{}".utf8)
    call.stream = false
    var request = try RequestParts(call).post(
      path: path, auth: auth, ownHeaders: ownHeaders, body: body)
    request.method = method ?? (body.isEmpty ? "GET" : "POST")
    request.headers.removeAll { $0.name.lowercased() == "content-type" }
    if !body.isEmpty { request.headers.append(("content-type", type)) }
    return request
  }
}

/// What a provider answered to a step. SQL decides what follows (`ai.worker_batch_report()`).
package struct BatchReport: Sendable, Equatable {
  package struct Found: Sendable, Equatable {
    package var id: String
    /// Our name of it, "" where it has none of ours; nil where the provider keeps no names.
    package var name: String?
    package var requests: Int?
    /// Seconds since 1970.
    package var created: Int?
  }

  package enum Ending: String, Sendable {
    case completed
    case failed
    case expired
    case cancelled
  }

  package var fileID: String?
  package var externalID: String?
  package var found: [Found] = []
  /// Where the list goes on; nil: it was gone through as far as is of use.
  package var nextPage: String?
  /// How it ended; nil: it has not.
  package var ending: Ending?
  /// The provider's own word for its state.
  package var word: String?
  package var outputID: String?
  package var errorsID: String?
  /// Whether there is something to collect.
  package var hasResults = false
  /// Why the provider refused the batch as a whole.
  package var errorCode: String?

  package init() {}
}

/// What a provider says of one member of a batch.
package struct BatchAnswer: Sendable {
  package enum Content: Sendable {
    case answered(Outcome)
    /// The provider did not come to it in time.
    case expired
    /// It was not done because the batch was cancelled.
    case cancelled
  }

  /// The name that the member was sent under.
  package var id: String
  package var content: Content
}
