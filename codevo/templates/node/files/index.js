// Press Run, then type a name in the output panel.
import { createInterface } from "node:readline/promises";

export function greet(name) {
  return `Hello, ${name || "world"}!`;
}

const terminal = createInterface({ input: process.stdin, output: process.stdout });
console.log(greet(await terminal.question("What is your name? ")));
terminal.close();
