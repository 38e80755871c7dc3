/// An object of an S3-compatible store, as SQL says how it is reached.
package struct StoredObject: Sendable, Equatable {
  /// Scheme, authority, bucket and key.
  package var url: String
  package var region: String
  /// Name of the secret: access key id, a colon, secret access key.
  package var secret: String
  /// Where the secret lies in the database; nil: the worker has it.
  package var secretRef: Int?

  package init?(_ json: [UInt8]) {
    guard let json = JSON(json) else { return nil }
    self.init(json)
  }

  init?(_ json: JSON) {
    guard let url = json["url"]?.string, let region = json["region"]?.string,
      let secret = json["secret"]?.string
    else { return nil }
    self.url = url
    self.region = region
    self.secret = secret
    secretRef = json["ref"]?.int
  }
}

/// A file that a request refers to and that is to be put into it before it is written.
package struct RequestFile: Sendable, Equatable {
  package enum Source: Sendable, Equatable {
    /// In the database, in parts.
    case parts
    case object(StoredObject)
    /// Somewhere in the public internet.
    case url(String)
    /// It was deleted, or may not be used.
    case gone
  }
  /// How the messages name it: an artifact's id, or an address.
  package var key: String
  package var source: Source
  package var tenant: String
  package var mediaType: String
  package var name: String?
  /// Its size; of an address the most that it may have.
  package var bytes: Int
  /// 64 hexadecimal digits; empty for an address.
  package var sha256: String

  /// What SQL put into the request beside messages and parameters; empty: nothing, which costs one
  /// comparison. PostgreSQL prints the members of an object in the order of their names' lengths, so that
  /// `files` is always the first.
  package static func wanted(by request: [UInt8]) throws(Failure) -> [RequestFile] {
    guard request.starts(with: #"{"files": "#.utf8) else { return [] }
    guard let files = JSON(request)?["files"], files.kind == .object else {
      throw Failure(.unsendable, message: "the files of the request are not a JSON object")
    }
    return files.members.map { RequestFile(key: $0.key, $0.value) }
  }

  private init(key: String, _ json: JSON) {
    self.key = key
    tenant = json["tenant"]?.string ?? ""
    mediaType = json["media_type"]?.string ?? "application/octet-stream"
    name = json["name"]?.string
    bytes = json["bytes"]?.int ?? 0
    sha256 = json["sha256"]?.string ?? ""
    if json["gone"]?.bool == true {
      source = .gone
    } else if let url = json["url"]?.string {
      source = .url(url)
    } else if let object = json["object"].flatMap({ StoredObject($0) }) {
      source = .object(object)
    } else {
      source = .parts
    }
  }
}

/// A file that is there.
package struct FileContent: Sendable {
  package var mediaType: String
  package var name: String?
  package var bytes: [UInt8]

  package init(mediaType: String, name: String? = nil, bytes: [UInt8]) {
    self.mediaType = mediaType
    self.name = name
    self.bytes = bytes
  }
}
