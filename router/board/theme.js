// Light or dark before anything is painted: what a person chose here, else what the system says.
try {
  const chosen = localStorage.getItem("homeport.theme");
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
} catch { /* a browser that keeps nothing follows the system */ }
