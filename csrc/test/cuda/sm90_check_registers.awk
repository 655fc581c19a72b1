# Reads nvdisasm's listing of the Hopper kernels and fails where an instruction writes a register
# of a product in flight: sums, scores, or P in registers. The assembler has been seen to do that
# to operands in flight across the edge of a loop, without a word; results then depend on timing.
# Instructions are read in the order of the listing: a product is in flight from its issue to the
# next wait for all of them.
#   nvdisasm -c attend.cubin | awk -f sm90_check_registers.awk
function clear(  r) {
  for (r in busy) delete busy[r]
}
function hold(first, count,  r) {
  for (r = first; r < first + count; ++r) busy[r] = $1
}
function number(text) {
  gsub(/[^0-9]/, "", text)
  return text + 0
}
/^[ \t]*\/\*[0-9a-f]+\*\// {
  text = $0
  sub(/^[ \t]*\/\*[0-9a-f]+\*\/[ \t]*/, "", text)
  sub(/;.*$/, "", text)
  sub(/^[{]?[ \t]*/, "", text)
  sub(/^@!?U?P[0-9T]+[ \t]+/, "", text)
  op = text
  sub(/[ \t].*$/, "", op)
  sub(/^[^ \t]+[ \t]*/, "", text)
  arguments = split(text, part, /,[ \t]*/)
  if (op ~ /^WARPGROUP\.DEPBAR/) {
    if (text ~ /0x0[ \t]*$/) clear()
    next
  }
  if (op ~ /^[IQ]GMMA/) {
    ++products
    hold(number(part[1]), op ~ /64x256x/ ? 128 : op ~ /64x128x/ ? 64 : 32)
    if (part[2] ~ /^R[0-9]/) hold(number(part[2]), 4)
    next
  }
  if (op ~ /^(ST|RED|BAR|BRA|BSSY|BSYNC|SYNCS|EXIT|WARP|VOTEU|R2UR|ISETP|FSETP|PLOP3|NOP|U)/) next
  to = part[1] ~ /^!?U?P[0-9T]/ ? part[2] : part[1]
  if (to !~ /^R[0-9]/) next
  width = op ~ /\.128/ || op ~ /^HMMA/ ? 4 : op ~ /\.64/ || op ~ /WIDE/ ? 2 : 1
  first = number(to)
  for (r = first; r < first + width; ++r) {
    if (r in busy) {
      print "R" r " written while the product at " busy[r] " is in flight: " $0
      failed = 1
      break
    }
  }
}
END {
  if (products == 0) {
    print "no products in the listing"
    failed = 1
  }
  exit failed
}
