/// FNV-1a with 64 bits (http://www.isthe.com/chongo/tech/comp/fnv/), the same on every machine and in
/// every process, which Swift's own hashing is not. The finish is that of MurmurHash3: FNV's low bits
/// alone spread poorly.
struct StableHash {
  private var state: UInt64 = 0xCBF2_9CE4_8422_2325

  mutating func add(_ byte: UInt8) {
    state = (state ^ UInt64(byte)) &* 0x0000_0100_0000_01B3
  }

  mutating func add(_ bytes: some Sequence<UInt8>) {
    for byte in bytes { add(byte) }
  }

  var value: UInt64 {
    var x = state
    x ^= x >> 33
    x &*= 0xFF51_AFD7_ED55_8CCD
    x ^= x >> 33
    x &*= 0xC4CE_B9FE_1A85_EC53
    return x ^ (x >> 33)
  }
}
