/// A `data:` URL whose content is base64 (RFC 2397): how chat messages carry images and files.
struct DataURL {
  /// Such as `image/png`; "" where none is given. Parameters such as a charset are left out.
  let mediaType: Substring
  /// Not checked: what it holds is the provider's to judge.
  let base64: Substring

  init?(_ url: String) {
    guard url.prefix(5).lowercased() == "data:",
      let comma = url.utf8.firstIndex(of: UInt8(ascii: ","))
    else { return nil }
    let media = url[..<comma].dropFirst(5)
    guard media.lowercased().hasSuffix(";base64") else { return nil }
    mediaType = media.prefix { $0 != ";" }
    base64 = url[url.utf8.index(after: comma)...]
  }
}
