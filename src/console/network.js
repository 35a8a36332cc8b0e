// Networks and addresses as the API writes them.

// An address as a list of bits.
function bits(text) {
  if (!text.includes(":")) return text.split(".").flatMap((part) => [...Number(part).toString(2).padStart(8, "0")]);
  const [head, tail] = text.split("::").map((side) => (side ? side.split(":") : []));
  const zeros = tail === undefined ? [] : Array(8 - head.length - tail.length).fill("0");
  return [...head, ...zeros, ...(tail || [])].flatMap((part) => [...parseInt(part, 16).toString(2).padStart(16, "0")]);
}

// Whether an address is within a network.
export function holds(network, address) {
  const [base, length] = network.split("/");
  if (base.includes(":") !== address.includes(":")) return false;
  const [left, right] = [bits(base), bits(address)];
  const count = length === undefined ? left.length : Number(length);
  return left.slice(0, count).join("") === right.slice(0, count).join("");
}
