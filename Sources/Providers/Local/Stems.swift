/// Makes the forms of an English word one, roughly: `limit`, `limits`, `limited` and `limiting` all
/// become `limit`. Words of other scripts, with digits, or of up to four letters stay as they are.
///
/// Only to compare words with each other: the stem itself need not be a word.
enum Stems {
  static func stem(_ word: String) -> String {
    var letters = Array(word.utf8)
    guard letters.count > 4, letters.allSatisfy({ (0x61...0x7A).contains($0) }) else { return word }
    func ends(_ suffix: StaticString) -> Bool {
      letters.count > suffix.utf8CodeUnitCount + 2
        && letters.suffix(suffix.utf8CodeUnitCount).elementsEqual(
          UnsafeBufferPointer(start: suffix.utf8Start, count: suffix.utf8CodeUnitCount))
    }
    if ends("ies") {
      letters.removeLast(3)
      letters.append(UInt8(ascii: "y"))
    } else if ends("ing") {
      letters.removeLast(3)
    } else if ends("ed") {
      letters.removeLast(2)
    } else if ends("s"), !ends("ss") {
      letters.removeLast()
    }
    if ends("e") { letters.removeLast() }
    // cancelled, cancelling, stopped
    if letters.count > 3, letters[letters.count - 1] == letters[letters.count - 2] {
      letters.removeLast()
    }
    return String(decoding: letters, as: UTF8.self)
  }
}
