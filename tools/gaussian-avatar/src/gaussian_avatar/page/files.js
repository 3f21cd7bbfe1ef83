// Files dropped on the page.

function dropping() {}
