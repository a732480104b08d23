"""How often byte strings are in a file or in the memory of a process: find_bytes.py FILE|PID HEX..."""
import sys

where, needles = sys.argv[1], [bytes.fromhex(word) for word in sys.argv[2:]]
counts = [0] * len(needles)


def search(data):
    for number, needle in enumerate(needles):
        counts[number] += data.count(needle)


if where.isdigit():
    with open(f"/proc/{where}/maps") as maps, open(f"/proc/{where}/mem", "rb", 0) as memory:
        for line in maps:
            bounds, rights = line.split()[:2]
            first, last = (int(bound, 16) for bound in bounds.split("-"))
            # The kernel's own pages at the end of the address space cannot be read this way.
            if rights[0] != "r" or "[v" in line:
                continue
            memory.seek(first)
            search(memory.read(last - first))
else:
    with open(where, "rb") as file:
        search(file.read())
print(*counts)
