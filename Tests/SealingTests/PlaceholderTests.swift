import Testing

@testable import Sealing

@Test func `a sealed value opens`() throws {
  let key = randomBytes(32)
  let context = SealedContext.secret(tenant: nil, name: "A_KEY")
  let sealed = try Sealing.seal([1, 2, 3], with: key, for: context)
  #expect(try Sealing.open(sealed, with: key, for: context).withBytes { Array($0) } == [1, 2, 3])
}
