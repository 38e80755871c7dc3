/// Cuts text into words, in lower case.
///
/// A word is a run of letters, marks and digits of any script. Where a script is written without
/// spaces (Han, kana, Thai, …) each letter is a word, and so is each symbol or emoji; punctuation is
/// none. Composed and decomposed spellings of a letter stay different words.
enum Words {
  /// Calls `body` with each word. One pass, one buffer.
  static func forEach(in text: some StringProtocol, _ body: (String) -> Void) {
    var word = String.UnicodeScalarView()
    func end() {
      guard !word.isEmpty else { return }
      body(String(word).lowercased())
      word.removeAll(keepingCapacity: true)
    }
    for scalar in text.unicodeScalars {
      switch kind(of: scalar) {
      case .letter: word.append(scalar)
      case .alone:
        end()
        body(String(scalar))
      case .gap: end()
      }
      // A "word" without end is no word; bound it, so that one line of base64 costs no more.
      if word.count >= 64 { end() }
    }
    end()
  }

  private enum Kind { case letter, alone, gap }

  private static func kind(of scalar: Unicode.Scalar) -> Kind {
    let value = scalar.value
    if value < 0x80 {
      switch value {
      case 0x30...0x39, 0x41...0x5A, 0x61...0x7A: return .letter
      default: return .gap
      }
    }
    switch value {
    case 0x0E00...0x0EFF, 0x1000...0x109F, 0x1780...0x17FF, 0x3040...0x30FF, 0x3400...0x4DBF,
      0x4E00...0x9FFF, 0xF900...0xFAFF, 0x20000...0x3FFFF:
      return .alone
    default: break
    }
    switch scalar.properties.generalCategory {
    case .uppercaseLetter, .lowercaseLetter, .titlecaseLetter, .modifierLetter, .otherLetter,
      .nonspacingMark, .spacingMark, .decimalNumber, .letterNumber, .otherNumber:
      return .letter
    case .otherSymbol, .mathSymbol, .currencySymbol, .privateUse: return .alone
    default: return .gap
    }
  }
}
