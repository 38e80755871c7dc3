/// Text as an SQL literal. For short texts without backslashes: names, checksums, messages.
func literal(_ text: String) -> String {
  "'" + text.replacing("'", with: "''") + "'"
}

/// Text between dollar tags that do not occur in it, so that it needs no escapes and can hold others.
func dollarQuoted(_ text: String) -> String {
  var tag = "$martlet$"
  var number = 0
  while text.contains(tag) {
    number += 1
    tag = "$martlet\(number)$"
  }
  return tag + "\n" + text + (text.hasSuffix("\n") ? "" : "\n") + tag
}
