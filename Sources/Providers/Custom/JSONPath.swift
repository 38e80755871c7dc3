/// Where a value stands in a JSON text: names behind dots, positions in brackets (`choices[0].text`;
/// `[-1]` is the last), `[*]` for every element. `$`, the whole, may begin it.
struct JSONPath: Sendable {
  private enum Step: Sendable {
    case member(String)
    case element(Int)
    case all
  }

  private var steps: [Step] = []

  /// nil for what is no path.
  init?(_ text: String) {
    var rest = text[...]
    if rest.first == "$" {
      rest = rest.dropFirst()
    } else if let first = rest.first, first != "[" {
      rest = "." + rest
    } else if rest.isEmpty {
      return nil
    }
    while let first = rest.first {
      rest = rest.dropFirst()
      if first == "." {
        let name = rest.prefix { $0 != "." && $0 != "[" }
        guard !name.isEmpty else { return nil }
        steps.append(.member(String(name)))
        rest = rest[name.endIndex...]
      } else if first == "[", let end = rest.firstIndex(of: "]") {
        let inside = rest[..<end]
        rest = rest[rest.index(after: end)...]
        if inside == "*" {
          steps.append(.all)
        } else if let position = Int(inside) {
          steps.append(.element(position))
        } else {
          return nil
        }
      } else {
        return nil
      }
    }
  }

  /// Whether this is the whole, `$`.
  var isWhole: Bool { steps.isEmpty }

  /// The values that stand there, nulls left out.
  func values(in json: JSON) -> [JSON] {
    var found = [json]
    for step in steps {
      found = found.flatMap { value -> [JSON] in
        switch step {
        case .member(let name): value.member(named: name).map { [$0] } ?? []
        case .all: value.elements
        case .element(let position): Self.element(of: value, position).map { [$0] } ?? []
        }
      }
    }
    return found.filter { $0.kind != .null }
  }

  /// The value that stands there; of several the first.
  func value(in json: JSON) -> JSON? { values(in: json).first }

  private static func element(of value: JSON, _ position: Int) -> JSON? {
    let elements = value.elements
    let at = position < 0 ? elements.count + position : position
    return elements.indices ~= at ? elements[at] : nil
  }
}

extension JSON {
  /// The value at a path that another JSON text names by a member; nil where either is missing.
  func value(at path: JSON?) -> JSON? {
    path?.string.flatMap(JSONPath.init)?.value(in: self)
  }
}
