// Times in the search form are the browser's own clock; the server is told which one that is.
const zone = Intl.DateTimeFormat().resolvedOptions().timeZone;
if (zone) {
  document.getElementById("zone").value = zone;
  for (const element of document.querySelectorAll("[data-zone]")) element.hidden = true;
}
