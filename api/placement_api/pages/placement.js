// Copies the engine's start command.
const button = document.getElementById("copy");
if (button && navigator.clipboard) {
  button.hidden = false;
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(document.getElementById(button.dataset.of).textContent.trim());
    document.getElementById("copied").textContent = "Copied.";
  });
}
