const button = document.querySelector("#button");
let presses = 0;
button.addEventListener("click", () => {
  presses += 1;
  button.textContent = `Pressed ${presses} times`;
});
